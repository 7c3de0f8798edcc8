"""Writes the OpenAPI document and the API page: `python protos/openapi DESCRIPTORS FOLDER`.

The descriptor set must have its source info, for the comments are the descriptions. What stands in
a `google.api.HttpBody` no descriptor says; `schemas/` does.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from bodies import Bodies
from google.protobuf import descriptor_pb2
from messages import Messages
from operations import Operations
from page import render
from sources import Sources

_HERE = Path(__file__).parent

_DESCRIPTION = """\
One endpoint for all models of the mesh, in the dialects that clients speak: OpenAI's, Anthropic's
and Ollama's, and the mesh's own (`/mesh/v1`). The same RPCs are there as typed gRPC, on the same
port; `docs/clients.md` shows how to call them.

Every call but those of the section `front door` needs a key: `authorization: Bearer KEY`, or
`x-api-key: KEY`. Errors have the form of the dialect that the path belongs to. Bodies may have
fields that only one engine knows: they pass through to it.
"""


def document(descriptors: descriptor_pb2.FileDescriptorSet) -> dict[str, Any]:
    """Returns the OpenAPI document of a descriptor set with source info."""
    sources = Sources(descriptors)
    messages = Messages(sources)
    bodies = Bodies(_HERE / "schemas")
    paths, tags = Operations(sources, messages, bodies).all()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "infermesh",
            "version": "v1",
            "description": _DESCRIPTION,
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"apiKey": []}],
        "tags": tags,
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "schemas": dict(sorted({**bodies.schemas, **messages.schemas}.items())),
        },
    }


def main() -> None:
    """Reads the descriptor set and writes the files into the folder."""
    descriptors = descriptor_pb2.FileDescriptorSet.FromString(Path(sys.argv[1]).read_bytes())
    folder = Path(sys.argv[2])
    made = document(descriptors)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "openapi.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    (folder / "index.html").write_text(render(made))
    for name in ("page.css", "page.js"):
        shutil.copyfile(_HERE / name, folder / name)


if __name__ == "__main__":
    main()
