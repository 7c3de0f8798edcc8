#!/bin/sh
# Fills the capitals in braces of an Envoy configuration from the environment: render.sh < in > out.
# The official container has no envsubst. Fails when one is left over.
set -eu
# INFERMESH_CORS_ORIGINS=origin,origin becomes Envoy's matchers; services/cli/cors.py is its twin.
CORS_ORIGINS=
for origin in $(printf '%s' "${INFERMESH_CORS_ORIGINS-}" | tr ',' '\n' | sed 's/^\*$/ANY/'); do
  [ "$origin" != ANY ] || origin='*'
  if ! printf '%s\n' "$origin" | grep -Eqx '\*|https?://[][A-Za-z0-9.:-]{1,190}'; then
    echo "INFERMESH_CORS_ORIGINS: $origin is no origin such as https://app.example.com, nor *" >&2
    exit 1
  fi
  CORS_ORIGINS="$CORS_ORIGINS${CORS_ORIGINS:+, }{exact: \"$origin\"}"
done
HSTS=${HSTS-} # strict-transport-security, where Envoy speaks TLS
export CORS_ORIGINS HSTS
script=$(env | sed -n 's/^\([A-Z_]*\)=\(.*\)$/s|${\1}|\2|g/p')
rendered=$(sed "$script")
if printf '%s' "$rendered" | grep -q '\${[A-Z_]*}'; then
  printf '%s' "$rendered" | grep -o '\${[A-Z_]*}' | sort -u >&2
  exit 1
fi
printf '%s\n' "$rendered"
