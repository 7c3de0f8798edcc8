"""Which node takes in a model that Ollama's callers pull, and what they are told of it."""

from collections.abc import Iterable
from typing import Any

import orjson

from infermesh.registry.v1 import node_service_pb2, resources_pb2
from services.kit.errors import MeshError
from services.registry import refusals
from services.registry.node import OFFLINE, READY

_PULLING_ENGINE = "ollama"
_LATEST = ":latest"


def node_for(nodes: Iterable[resources_pb2.Node], model: str) -> str | None:
    """Returns the id of the node that pulls a model, or None where it is there without a pull.

    Only Ollama finds models by their names. Of the ready nodes with Ollama the one that serves the
    model already takes it, to bring it up to date, else the one with the fewest models.

    Raises:
        MeshError: `FAILED_PRECONDITION`: no node can pull it, and none serves it.
    """
    name = model.removesuffix(_LATEST)
    online = [node for node in nodes if node.state != OFFLINE]
    pulling = [node for node in online if node.engine == _PULLING_ENGINE and node.state == READY]
    serving = [node for node in online if any(each.name == name for each in node.models)]
    for node in pulling:
        if node in serving:
            return node.node_id
    if serving:
        return None
    if not pulling:
        raise refusals.nobody_pulls(model)
    return min(pulling, key=lambda node: (len(node.models), node.node_id)).node_id


def line(progress: node_service_pb2.ModelProgress) -> bytes:
    """Returns how far a pull is as a line of JSON; what the engine does not say is left out."""
    # The node says `loading` after Ollama's own `success`, which to callers is the end.
    status = "verifying" if progress.status == "success" and not progress.done else progress.status
    said: dict[str, Any] = {"status": "success" if progress.done else status}
    if progress.HasField("completed_bytes"):
        said["completed"] = progress.completed_bytes
    if progress.HasField("total_bytes"):
        said["total"] = progress.total_bytes
    return orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE)


def failure(error: MeshError) -> bytes:
    """Returns the line that ends a pull which fails after others were sent."""
    return orjson.dumps({"error": error.message}, option=orjson.OPT_APPEND_NEWLINE)


SUCCESS = b'{"status":"success"}\n'
"""The line that ends a pull."""
