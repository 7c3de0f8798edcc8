"""Where policies, models' routes and splits are kept, and how often splits chose what."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

POLICY, ROUTE, SPLIT = "policy", "route", "split"

MAX_DOCUMENTS = 10_000


class Document(NamedTuple):
    """A policy, route or split, encoded.

    Attributes:
        kind: `POLICY`, `ROUTE` or `SPLIT`.
        name: Unique in its kind.
        body: The message of `infermesh.routing.v1`.
    """

    kind: str
    name: str
    body: bytes


Counts = Mapping[tuple[str, str], int]
"""Calls by alias and model."""


class DocumentStore(Protocol):
    """Keeps documents. Every method raises `STORE_UNAVAILABLE` when it cannot reach them.

    A write is told to all replicas once it is committed.
    """

    async def all(self) -> Sequence[Document]:
        """Returns all documents, at most `MAX_DOCUMENTS`."""

    async def add(self, document: Document) -> bool:
        """Adds a document; returns False, and changes nothing, where its name is taken."""

    async def put(self, document: Document) -> None:
        """Adds a document, or takes the place of the one of its name."""

    async def replace(self, document: Document) -> bool:
        """Takes the place of the document of its name; returns False where there is none."""

    async def delete(self, kind: str, name: str) -> bool:
        """Deletes a document, and the counts of a split; returns False where there is none."""

    async def add_counts(self, counts: Counts) -> None:
        """Adds calls to the counts of splits; those of an alias that is gone are dropped."""

    async def counts(self) -> Counts:
        """Returns all counts."""
