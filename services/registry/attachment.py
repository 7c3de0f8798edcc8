"""The live stream of one node, seen from the rules' side."""

import asyncio
import enum

from services.kit.errors import MeshError


class End(enum.Enum):
    """Why a node's stream ends."""

    LEFT = enum.auto()
    REPLACED = enum.auto()
    STOPPING = enum.auto()


class Attachment:
    """Holds what a node is still to be told; only the latest wish counts."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.end: End | MeshError | None = None
        self._drain: bool | None = None
        self._wake = asyncio.Event()

    def tell_drain(self, draining: bool) -> None:
        """Has the node told whether an operator drains it."""
        self._drain = draining
        self._wake.set()

    def close(self, end: End | MeshError) -> None:
        """Ends the stream; the first reason counts."""
        if self.end is None:
            self.end = end
        self._wake.set()

    async def next_drain(self) -> bool | None:
        """Waits for something to tell the node; returns None once the stream is to end."""
        while self.end is None:
            await self._wake.wait()
            self._wake.clear()
            if self.end is None and self._drain is not None:
                drain, self._drain = self._drain, None
                return drain
        return None
