"""Turns the texts of one request into vectors: cache first, then a node."""

from collections.abc import Sequence

from services.embeddings.batcher import Batcher
from services.embeddings.cache import Cache
from services.embeddings.vectors import Vector


class Embedder:
    """Answers requests from the cache and from nodes."""

    def __init__(self, cache: Cache, batcher: Batcher) -> None:
        self._cache = cache
        self._batcher = batcher

    async def embed(
        self, model: str, texts: Sequence[str], *, tenant: str, request_id: str, field: str
    ) -> list[Vector]:
        """Returns a vector for each text, in their order.

        Args:
            model: The model's name.
            texts: At least one; equal ones are embedded once.
            tenant: Whose part of the cache is used.
            request_id: The id that calls to a node carry.
            field: The name of the field that holds the texts, for errors. Example: `input`.

        Raises:
            MeshError: The node's refusal or failure.
        """
        fields: dict[str, str] = {}
        for index, text in enumerate(texts):
            fields.setdefault(text, f"{field}[{index}]")
        unique = list(fields)
        known = await self._cache.get(tenant, model, unique)
        vectors = {
            text: vector for text, vector in zip(unique, known, strict=True) if vector is not None
        }
        if missing := {text: fields[text] for text in unique if text not in vectors}:
            made = await self._batcher.embed(model, missing, request_id)
            await self._cache.put(tenant, model, made)
            vectors.update(made)
        return [vectors[text] for text in texts]
