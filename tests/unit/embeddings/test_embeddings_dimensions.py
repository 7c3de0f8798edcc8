"""Vectors of fewer components, and tokens in place of texts."""

import asyncio
import math
import struct
from collections.abc import Sequence

import pytest

from services.embeddings.batcher import Batcher, Limits
from services.embeddings.embedder import Embedder
from services.embeddings.vectors import Input, Vector
from services.kit.errors import MeshError


def packed(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def test_a_cut_vector_has_length_one() -> None:
    cut = Vector(packed(3, 4, 12), 5, cached=True).cut(2)
    assert cut.values() == pytest.approx((0.6, 0.8))
    assert math.hypot(*cut.values()) == pytest.approx(1)
    assert (cut.tokens, cut.cached, cut.size) == (5, True, 2)


def test_what_is_whole_or_nothing_stays() -> None:
    whole = Vector(packed(3, 4), 5)
    assert whole.cut(2) is whole
    assert Vector(packed(0, 0, 1), 1).cut(2).values() == (0, 0)


class Node:
    """Gives four components, or as many as it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[Input], int | None]] = []

    async def embed(
        self, model: str, texts: Sequence[Input], request_id: str, dimensions: int | None
    ) -> list[Vector]:
        self.asked.append((list(texts), dimensions))
        return [Vector(packed(*range(1, (dimensions or 4) + 1)), 1) for _ in texts]


class Memory:
    """A cache in a dictionary."""

    def __init__(self) -> None:
        self.kept: dict[object, Vector] = {}

    async def get(self, tenant, model, texts, dimensions=None):
        return [self.kept.get((text, dimensions)) for text in texts]

    async def put(self, tenant, model, vectors, dimensions=None):
        self.kept.update(((text, dimensions), vector) for text, vector in vectors.items())


async def embed(embedder: Embedder, *texts: Input, dimensions: int | None = None) -> list[Vector]:
    return await embedder.embed(
        "m", texts, tenant="t", request_id="r", field="input", dimensions=dimensions
    )


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
async def batcher(node: Node):
    made = Batcher(node.embed, Limits(texts=8, window_s=0.01, calls=2))
    yield made
    await made.close()


async def test_a_model_that_may_be_cut_is_asked_for_all(node: Node, batcher: Batcher) -> None:
    embedder = Embedder(Memory(), batcher, lambda model: model == "m")
    (cut,) = await embed(embedder, "a", dimensions=2)
    assert cut.values() == pytest.approx((1 / math.sqrt(5), 2 / math.sqrt(5)))
    # The whole vector is what was kept: other sizes and all of it come from there.
    assert [v.size for v in await embed(embedder, "a", dimensions=3)] == [3]
    assert [v.size for v in await embed(embedder, "a")] == [4]
    assert node.asked == [(["a"], None)]
    with pytest.raises(MeshError) as error:
        await embed(embedder, "a", dimensions=5)
    assert (error.value.reason_name, error.value.param) == ("INVALID_ARGUMENT", "dimensions")


async def test_of_others_the_engine_is_asked_for_fewer(node: Node, batcher: Batcher) -> None:
    embedder = Embedder(Memory(), batcher)
    assert [v.values() for v in await embed(embedder, "a", dimensions=2)] == [(1, 2)]
    assert [v.size for v in await embed(embedder, "a")] == [4]
    assert node.asked == [(["a"], 2), (["a"], None)]


async def test_texts_and_tokens_do_not_share_a_call(node: Node, batcher: Batcher) -> None:
    embedder = Embedder(Memory(), batcher)
    await asyncio.gather(embed(embedder, "a"), embed(embedder, (1, 2)), embed(embedder, "b"))
    assert sorted(map(str, node.asked)) == ["(['a', 'b'], None)", "([(1, 2)], None)"]
