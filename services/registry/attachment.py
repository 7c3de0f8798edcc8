"""The live stream of one node, seen from the rules' side."""

import asyncio
import enum
from collections import deque

from infermesh.registry.v1 import node_service_pb2 as pb
from services.kit.errors import MeshError


class End(enum.Enum):
    """Why a node's stream ends."""

    LEFT = enum.auto()
    REPLACED = enum.auto()
    STOPPING = enum.auto()


class Attachment:
    """Holds what a node is still to be told.

    Of wishes to drain only the latest counts. Commands are told in order; how many there can be
    is bounded by who sends them (`Commands`).

    Args:
        node_id: The node.
        key_id: The key that it joined with; empty when it came past Envoy.
    """

    def __init__(self, node_id: str, key_id: str = "") -> None:
        self.node_id = node_id
        self.key_id = key_id
        self.end: End | MeshError | None = None
        self._drain: bool | None = None
        self._messages: deque[pb.AttachNodeResponse] = deque()
        self._wake = asyncio.Event()

    def tell_drain(self, draining: bool) -> None:
        """Has the node told whether an operator drains it."""
        self._drain = draining
        self._wake.set()

    def send(self, message: pb.AttachNodeResponse) -> None:
        """Has the node told this."""
        self._messages.append(message)
        self._wake.set()

    def close(self, end: End | MeshError) -> None:
        """Ends the stream; the first reason counts."""
        if self.end is None:
            self.end = end
        self._wake.set()

    async def next_message(self) -> pb.AttachNodeResponse | None:
        """Waits for something to tell the node; returns None once the stream is to end."""
        while self.end is None:
            if self._drain is not None:
                drain, self._drain = self._drain, None
                return pb.AttachNodeResponse(drain_changed=pb.DrainChanged(draining=drain))
            if self._messages:
                return self._messages.popleft()
            self._wake.clear()
            await self._wake.wait()
        return None
