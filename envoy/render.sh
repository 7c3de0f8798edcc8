#!/bin/sh
# Fills the capitals in braces of an Envoy configuration from the environment: render.sh < in > out.
# The official container has no envsubst. Fails when one is left over.
set -eu
script=$(env | sed -n 's/^\([A-Z_]*\)=\(.*\)$/s|${\1}|\2|g/p')
rendered=$(sed "$script")
if printf '%s' "$rendered" | grep -q '\${[A-Z_]*}'; then
  printf '%s' "$rendered" | grep -o '\${[A-Z_]*}' | sort -u >&2
  exit 1
fi
printf '%s\n' "$rendered"
