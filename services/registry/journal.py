"""Writes what changes in memory to the store, at once or as soon as the store answers."""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

from services.kit.errors import StoreUnavailableError
from services.registry.store import ModelRow, NodeRow, Store

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_LAST_FLUSH_S = 2.0

Rows = Callable[[Collection[str], Collection[str]], tuple[Sequence[NodeRow], Sequence[ModelRow]]]
"""Returns the rows of these nodes and models as they are now; those that are gone are left out."""


class Journal:
    """Keeps the store in step with memory.

    What is noted is the name alone: a node that changes ten times while the store is away is one
    row to write, so the journal is never larger than the mesh.

    Args:
        store: Where to write.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._nodes: set[str] = set()
        self._models: set[str] = set()
        self._dirty = asyncio.Event()
        # One writer at a time, so that rows land in the order in which they changed.
        self._writing = asyncio.Lock()

    def note_node(self, node_id: str) -> None:
        """Has a node written soon; one that is gone is deleted from the store."""
        self._nodes.add(node_id)
        self._dirty.set()

    def note_model(self, name: str) -> None:
        """Has a model written soon."""
        self._models.add(name)
        self._dirty.set()

    async def save(
        self,
        nodes: Sequence[NodeRow],
        models: Sequence[ModelRow],
        gone_node_ids: Collection[str] = (),
    ) -> None:
        """Writes and deletes now.

        Raises:
            StoreUnavailableError: Nothing is written.
        """
        async with self._writing:
            await self._store.save(nodes, models, gone_node_ids)

    async def delete_model(self, name: str) -> None:
        """Deletes a model now.

        Raises:
            StoreUnavailableError: Nothing is deleted.
        """
        async with self._writing:
            await self._store.delete_model(name)

    async def run(self, rows: Rows) -> None:
        """Writes what is noted, forever; tries again each second while the store is away."""
        while True:
            await self._dirty.wait()
            if not await self._flush(rows):
                await asyncio.sleep(_RETRY_S)

    async def finish(self, rows: Rows) -> None:
        """Writes what is still noted, for at most 2 s."""
        try:
            async with asyncio.timeout(_LAST_FLUSH_S):
                await self._flush(rows)
        except TimeoutError:
            log.warning("stopping with changes unwritten", extra={"nodes": sorted(self._nodes)})

    async def _flush(self, rows: Rows) -> bool:
        async with self._writing:
            self._dirty.clear()
            nodes, models = self._nodes, self._models
            if not nodes and not models:
                return True
            self._nodes, self._models = set(), set()
            try:
                node_rows, model_rows = rows(nodes, models)
                gone = nodes - {row.node_id for row in node_rows}
                await self._store.save(node_rows, model_rows, gone)
            except BaseException as error:
                self._nodes |= nodes
                self._models |= models
                self._dirty.set()
                if not isinstance(error, StoreUnavailableError):
                    raise
                return False
            return True
