"""SplitService over gRPC."""

from typing import Any

import grpc
from google.protobuf import empty_pb2

from infermesh.errors.v1 import errors_pb2
from infermesh.routing.v1 import split_service_pb2 as pb
from infermesh.routing.v1 import split_service_pb2_grpc
from services.kit.errors import MeshError
from services.kit.guard import validate
from services.routing import store
from services.routing.book import Book
from services.routing.contracts import check_split, invalid
from services.routing.servicer_policies import merge
from services.routing.splits import SplitCounts
from services.routing.store import Counts, Document, DocumentStore
from services.routing.view import MeshView

_Context = grpc.aio.ServicerContext[Any, Any]

_FIELDS = ("targets", "sticky_by")


class SplitServicer(split_service_pb2_grpc.SplitServiceServicer):
    """Implements SplitService.

    Args:
        view: The mesh, for the names of models.
        book: What holds now.
        documents: Where changes are written, and counts are.
        pending: Counts of this replica that are not stored yet.
    """

    def __init__(
        self, view: MeshView, book: Book, documents: DocumentStore, pending: SplitCounts
    ) -> None:
        self._view = view
        self._book = book
        self._documents = documents
        self._pending = pending

    async def ListSplits(
        self, request: pb.ListSplitsRequest, context: _Context
    ) -> pb.ListSplitsResponse:
        """Lists the splits by alias, with their counts."""
        counts = await self._documents.counts()
        splits = self._book.splits
        return pb.ListSplitsResponse(
            splits=[self._counted(splits[alias], counts) for alias in sorted(splits)]
        )

    async def GetSplit(self, request: pb.GetSplitRequest, context: _Context) -> pb.Split:
        """Returns one split with its counts."""
        split = self._split(request.alias)
        return self._counted(split, await self._documents.counts())

    async def CreateSplit(self, request: pb.CreateSplitRequest, context: _Context) -> pb.Split:
        """Creates a split."""
        split = request.split
        if self._view.knows(split.alias):
            raise invalid("split.alias", f"`{split.alias}` is the name of a model.")
        self._check(split)
        split.create_time.GetCurrentTime()
        split.update_time.CopyFrom(split.create_time)
        if not await self._documents.add(_document(split)):
            raise invalid("split.alias", f"There is a split `{split.alias}` already.")
        await self._reload()
        return split

    async def UpdateSplit(self, request: pb.UpdateSplitRequest, context: _Context) -> pb.Split:
        """Changes a split."""
        split = pb.Split()
        split.CopyFrom(self._split(request.split.alias))
        merge(request.split, split, request.update_mask, _FIELDS, "split")
        validate(split)
        self._check(split)
        split.update_time.GetCurrentTime()
        if not await self._documents.replace(_document(split)):
            raise _not_found(split.alias)
        await self._reload()
        return self._counted(split, await self._documents.counts())

    async def DeleteSplit(
        self, request: pb.DeleteSplitRequest, context: _Context
    ) -> empty_pb2.Empty:
        """Deletes a split and its counts."""
        if not await self._documents.delete(store.SPLIT, request.alias):
            raise _not_found(request.alias)
        await self._reload()
        return empty_pb2.Empty()

    def _check(self, split: pb.Split) -> None:
        check_split(split)
        for i, target in enumerate(split.targets):
            target.calls = 0
            if target.model in self._book.splits:
                raise invalid(
                    f"split.targets[{i}].model", f"`{target.model}` is an alias, not a model."
                )

    def _split(self, alias: str) -> pb.Split:
        split = self._book.splits.get(alias)
        if split is None:
            raise _not_found(alias)
        return split

    def _counted(self, split: pb.Split, counts: Counts) -> pb.Split:
        counted = pb.Split()
        counted.CopyFrom(split)
        for target in counted.targets:
            stored = counts.get((split.alias, target.model), 0)
            target.calls = stored + self._pending.pending(split.alias, target.model)
        return counted

    async def _reload(self) -> None:
        # Other replicas hear of it from the store; this one need not wait for that.
        await self._book.reload(self._documents)


def _document(split: pb.Split) -> Document:
    return Document(store.SPLIT, split.alias, split.SerializeToString(deterministic=True))


def _not_found(alias: str) -> MeshError:
    return MeshError(errors_pb2.ERROR_REASON_NOT_FOUND, f"There is no split `{alias}`.")
