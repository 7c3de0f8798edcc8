"""Server-sent events: reads those of nodes, writes those of the Responses API."""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from infermesh.errors.v1 import errors_pb2
from services.kit.errors import MeshError

_MAX_EVENT_BYTES = 16 * 1024 * 1024
_DATA = b"data:"
_DONE = b"[DONE]"


class Reader:
    """Takes a node's events apart."""

    def __init__(self) -> None:
        self._rest = b""

    def read(self, piece: bytes) -> list[dict[str, Any]]:
        """Returns the objects of the events that are complete now.

        Raises:
            MeshError: `ENGINE_FAILED`, what comes is no stream of JSON events.
        """
        text = (self._rest + piece).replace(b"\r\n", b"\n")
        end = text.rfind(b"\n\n") + 2
        if end < 2:
            end = 0
        self._rest = text[end:]
        if len(self._rest) > _MAX_EVENT_BYTES:
            raise _failed("An event of the answer has no end.")
        objects = []
        for event in text[:end].split(b"\n\n"):
            data = b"\n".join(
                line[len(_DATA) :].strip() for line in event.split(b"\n") if line.startswith(_DATA)
            )
            if not data or data == _DONE:
                continue
            try:
                found = orjson.loads(data)
            except orjson.JSONDecodeError:
                raise _failed("An event of the answer is not JSON.") from None
            if isinstance(found, dict):
                objects.append(found)
        return objects


def written(events: Iterable[Mapping[str, Any]]) -> bytes:
    """Returns events, each named by its `type`, as they go over the wire."""
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))
        for event in events
    )


def _failed(message: str) -> MeshError:
    return MeshError(errors_pb2.ERROR_REASON_ENGINE_FAILED, message)
