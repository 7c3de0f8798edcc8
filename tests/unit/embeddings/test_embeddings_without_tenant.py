"""Texts of no tenant, which nodes ask for, pass by the cache."""

from collections.abc import Mapping

from services.embeddings.embedder import Embedder
from services.embeddings.vectors import Input, Vector

ONE = Vector(b"\0\0\x80?", 1)


class Memory:
    def __init__(self) -> None:
        self.kept: dict[Input, Vector] = {}

    async def get(self, tenant, model, texts, dimensions=None):
        return [self.kept.get(text) for text in texts]

    async def put(self, tenant, model, vectors, dimensions=None):
        self.kept.update(vectors)


class Batcher:
    def __init__(self) -> None:
        self.texts: list[Input] = []

    async def embed(
        self, model: str, texts: Mapping[Input, str], request_id: str, dimensions: int | None
    ) -> Mapping[Input, Vector]:
        self.texts += texts
        return dict.fromkeys(texts, ONE)


async def test_they_are_neither_found_nor_kept() -> None:
    cache, batcher = Memory(), Batcher()
    embedder = Embedder(cache, batcher)

    async def embed(tenant: str) -> None:
        assert await embedder.embed("m", ["a"], tenant=tenant, request_id="r", field="f") == [ONE]

    await embed("")
    assert cache.kept == {}
    await embed("t")
    await embed("t")
    assert batcher.texts == ["a", "a"]
    await embed("")
    assert batcher.texts == ["a", "a", "a"]
