#!/bin/sh
# Renders the configuration into /tmp and starts Envoy with it: start.sh [Envoy's options].
#
# FRONT_TLS_DIR names the folder with the front door's cert.pem and key.pem, TLS_DIR the one with Envoy's
# ca.pem, cert.pem and key.pem inside the mesh. Empty or unset: no TLS there.
set -eu
here=$(dirname "$0")
out=${ENVOY_CONFIG_DIR:-/tmp/infermesh}
mkdir -p "$out/sds"
export SDS_DIR="$out/sds"
text=$(cat "$here/envoy.yaml")
if [ -n "${FRONT_TLS_DIR-}" ]; then
  text=$(printf '%s\n' "$text" | sed -f "$here/tls_front.sed")
  "$here/render.sh" < "$here/sds/front.yaml" > "$SDS_DIR/front.yaml"
  export HSTS="${HSTS-max-age=31536000}"
fi
if [ -n "${TLS_DIR-}" ]; then
  text=$(printf '%s\n' "$text" | sed -f "$here/tls_mesh.sed")
  "$here/render.sh" < "$here/sds/envoy.yaml" > "$SDS_DIR/envoy.yaml"
  "$here/render.sh" < "$here/sds/authority.yaml" > "$SDS_DIR/authority.yaml"
fi
printf '%s\n' "$text" | "$here/render.sh" > "$out/envoy.yaml"
exec "${ENVOY:-envoy}" --config-path "$out/envoy.yaml" "$@"
