#!/usr/bin/env bash
# Generates Python code, the descriptor set, the OpenAPI document and the API page from protos/ into
# the folder named.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1
mkdir -p "$out"
rm -rf "$out/infermesh" "$out/buf" "$out/api" "$out/infermesh.binpb"
mapfile -t protos < <(cd protos && find infermesh -name '*.proto' | sort)
.venv/bin/python -m grpc_tools.protoc -Iprotos -Ithird_party \
  --plugin=protoc-gen-mypy=.venv/bin/protoc-gen-mypy \
  --plugin=protoc-gen-mypy_grpc=.venv/bin/protoc-gen-mypy_grpc \
  --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
  --include_imports --descriptor_set_out="$out/infermesh.binpb" \
  "${protos[@]}" buf/validate/validate.proto
# Files without a service need no stubs.
find "$out" -name '*_pb2_grpc.py*' | while read -r file; do
  grep -q 'class .*Stub' "$file" || rm "$file"
done
# The descriptor set above goes to Envoy, which has no use for comments; they are the document's text.
described=$(mktemp)
trap 'rm -f "$described"' EXIT
.venv/bin/python -m grpc_tools.protoc -Iprotos -Ithird_party \
  --include_imports --include_source_info --descriptor_set_out="$described" "${protos[@]}"
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$out" .venv/bin/python protos/openapi "$described" "$out/api"
