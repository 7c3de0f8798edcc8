"""Turns the inputs of one request into vectors: cache first, then a node."""

from collections.abc import Callable, Sequence

from infermesh.errors.v1 import errors_pb2
from services.embeddings.batcher import Batcher
from services.embeddings.cache import Cache
from services.embeddings.vectors import Input, Vector
from services.kit.errors import MeshError


class Embedder:
    """Answers requests from the cache and from nodes.

    Args:
        cache: Asked first.
        batcher: Asks nodes.
        can_cut: Says of a model whether the start of its vectors is of use by itself, so that
            vectors are cut here. Of all others the engine is asked for fewer components.
    """

    def __init__(
        self, cache: Cache, batcher: Batcher, can_cut: Callable[[str], bool] = lambda model: False
    ) -> None:
        self._cache = cache
        self._batcher = batcher
        self._can_cut = can_cut

    async def embed(
        self,
        model: str,
        texts: Sequence[Input],
        *,
        tenant: str,
        request_id: str,
        field: str,
        dimensions: int | None = None,
    ) -> list[Vector]:
        """Returns a vector for each text, in their order.

        Args:
            model: The model's name.
            texts: At least one, all texts or all tokens; equal ones are embedded once.
            tenant: Whose part of the cache is used; empty is none.
            request_id: The id that calls to a node carry.
            field: The name of the field that holds the texts, for errors. Example: `input`.
            dimensions: How many components the vectors are to have; None is all.

        Raises:
            MeshError: The node's refusal or failure; `INVALID_ARGUMENT` for more components than
                there are.
        """
        if dimensions is None or not self._can_cut(model):
            return await self._whole(model, texts, tenant, request_id, field, dimensions)
        vectors = await self._whole(model, texts, tenant, request_id, field, None)
        if dimensions > vectors[0].size:
            raise MeshError(
                errors_pb2.ERROR_REASON_INVALID_ARGUMENT,
                f"`dimensions` must be at most {vectors[0].size} for the model `{model}`.",
                param="dimensions",
            )
        return [vector.cut(dimensions) for vector in vectors]

    async def _whole(
        self,
        model: str,
        texts: Sequence[Input],
        tenant: str,
        request_id: str,
        field: str,
        dimensions: int | None,
    ) -> list[Vector]:
        fields: dict[Input, str] = {}
        for index, text in enumerate(texts):
            fields.setdefault(text, f"{field}[{index}]")
        unique = list(fields)
        # A node's texts are those of any tenant: by the time that an answer takes, one would learn
        # what another has asked.
        if not tenant:
            known: list[Vector | None] = [None] * len(unique)
        else:
            known = await self._cache.get(tenant, model, unique, dimensions)
        vectors = {
            text: vector for text, vector in zip(unique, known, strict=True) if vector is not None
        }
        if missing := {text: fields[text] for text in unique if text not in vectors}:
            made = await self._batcher.embed(model, missing, request_id, dimensions)
            if tenant:
                await self._cache.put(tenant, model, made, dimensions)
            vectors.update(made)
        return [vectors[text] for text in texts]
