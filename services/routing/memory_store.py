"""Documents in memory: for tests, and for a mesh that has no database."""

from collections.abc import Callable, Sequence

from services.routing.store import SPLIT, Counts, Document


class MemoryDocumentStore:
    """A `DocumentStore` that lives as long as the process.

    Attributes:
        on_change: Called after each write.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self.on_change = on_change
        self._documents: dict[tuple[str, str], Document] = {}
        self._counts: dict[tuple[str, str], int] = {}

    async def all(self) -> Sequence[Document]:
        """See `DocumentStore`."""
        return list(self._documents.values())

    async def add(self, document: Document) -> bool:
        """See `DocumentStore`."""
        if (document.kind, document.name) in self._documents:
            return False
        await self.put(document)
        return True

    async def put(self, document: Document) -> None:
        """See `DocumentStore`."""
        self._documents[document.kind, document.name] = document
        self.on_change()

    async def replace(self, document: Document) -> bool:
        """See `DocumentStore`."""
        if (document.kind, document.name) not in self._documents:
            return False
        await self.put(document)
        return True

    async def delete(self, kind: str, name: str) -> bool:
        """See `DocumentStore`."""
        if self._documents.pop((kind, name), None) is None:
            return False
        if kind == SPLIT:
            self._counts = {key: n for key, n in self._counts.items() if key[0] != name}
        self.on_change()
        return True

    async def add_counts(self, counts: Counts) -> None:
        """See `DocumentStore`."""
        for key, calls in counts.items():
            if (SPLIT, key[0]) in self._documents:
                self._counts[key] = self._counts.get(key, 0) + calls

    async def counts(self) -> Counts:
        """See `DocumentStore`."""
        return dict(self._counts)
