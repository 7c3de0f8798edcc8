"""Tells watchers what changed, however slowly they read."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from services.kit.errors import MeshError


@dataclass
class Changes:
    """Names of what changed since a watcher last looked."""

    nodes: set[str] = field(default_factory=set)
    deleted_nodes: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    deleted_models: set[str] = field(default_factory=set)


class Watcher:
    """One watcher's unread changes.

    Names are kept, not messages: a hundred reports of one node are one name, so a watcher that
    reads slowly never holds more than the mesh has and had nodes and models since its last look.
    """

    def __init__(self) -> None:
        self.changes = Changes()
        self.wake = asyncio.Event()
        self.closed = False
        self.error: MeshError | None = None

    def close(self, error: MeshError | None = None) -> None:
        """Ends the watch, with an error or because the registry stops."""
        self.closed, self.error = True, error
        self.wake.set()

    async def take(self) -> Changes | None:
        """Waits for changes and returns them; None once the watch ends."""
        await self.wake.wait()
        self.wake.clear()
        if self.closed:
            return None
        taken, self.changes = self.changes, Changes()
        return taken


class Watchers:
    """All watchers."""

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()

    def __len__(self) -> int:
        return len(self._watchers)

    def add(self) -> Watcher:
        """Returns a new watcher, which sees every change from now on."""
        watcher = Watcher()
        self._watchers.add(watcher)
        return watcher

    def remove(self, watcher: Watcher) -> None:
        """Forgets a watcher; does nothing when it is forgotten already."""
        self._watchers.discard(watcher)

    def node_changed(self, node_id: str) -> None:
        """Tells all watchers of a new or changed node."""
        for changes in self._woken():
            changes.nodes.add(node_id)
            changes.deleted_nodes.discard(node_id)

    def node_deleted(self, node_id: str) -> None:
        """Tells all watchers of a deleted node."""
        for changes in self._woken():
            changes.nodes.discard(node_id)
            changes.deleted_nodes.add(node_id)

    def model_changed(self, name: str) -> None:
        """Tells all watchers of a new or changed model."""
        for changes in self._woken():
            changes.models.add(name)
            changes.deleted_models.discard(name)

    def model_deleted(self, name: str) -> None:
        """Tells all watchers of a deleted model."""
        for changes in self._woken():
            changes.models.discard(name)
            changes.deleted_models.add(name)

    def close(self) -> None:
        """Ends all watches."""
        for watcher in self._watchers:
            watcher.close()

    def _woken(self) -> Iterator[Changes]:
        for watcher in self._watchers:
            watcher.wake.set()
            yield watcher.changes
