#!/usr/bin/env bash
# Fails when gen/ is not what protos/ generate.
set -euo pipefail
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
protos/generate.sh "$fresh"
diff -r --exclude=__pycache__ gen "$fresh" || { echo "gen/ is stale: run make generate" >&2; exit 1; }
