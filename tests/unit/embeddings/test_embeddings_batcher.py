import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from infermesh.errors.v1 import errors_pb2
from services.embeddings import batcher as batcher_module
from services.embeddings.batcher import Batcher, Limits
from services.embeddings.vectors import Vector
from services.kit.errors import MeshError

# Long enough that no window ends within a test unless it is meant to.
_LONG_S = 1000.0


class _Node:
    """Answers when told to; refuses texts that begin with `bad`."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.request_ids: list[str] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None

    async def embed(
        self, model: str, texts: Sequence[str], request_id: str, dimensions: int | None
    ) -> list[Vector]:
        self.calls.append(list(texts))
        self.request_ids.append(request_id)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure:
            raise self.failure
        for index, text in enumerate(texts):
            if text.startswith("bad"):
                raise MeshError(
                    errors_pb2.ERROR_REASON_INPUT_TOO_LONG,
                    f"input[{index}] is longer than the model's context of 512 tokens.",
                    param=f"input[{index}]",
                    metadata={"index": str(index), "max_tokens": "512"},
                )
        return [Vector(text.encode(), len(text)) for text in texts]


@pytest.fixture
def node() -> _Node:
    return _Node()


@pytest.fixture
async def batcher(node: _Node) -> AsyncIterator[Batcher]:
    made = Batcher(node.embed, Limits(texts=4, window_s=_LONG_S, calls=2))
    yield made
    node.gate.set()
    await made.close()


def _texts(*texts: str) -> dict[str, str]:
    return {text: f"input[{index}]" for index, text in enumerate(texts)}


def _embed(batcher: Batcher, *texts: str, request_id: str = "r") -> asyncio.Task[object]:
    return asyncio.create_task(batcher.embed("m", _texts(*texts), request_id))  # type: ignore[arg-type]


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_lone_request_goes_at_once(batcher: Batcher, node: _Node) -> None:
    vectors = await batcher.embed("m", _texts("a", "bc"), "r7")
    assert vectors == {"a": Vector(b"a", 1), "bc": Vector(b"bc", 2)}
    assert node.calls == [["a", "bc"]]
    assert node.request_ids == ["r7"]
    await _settle()
    assert batcher._lanes == {}


async def test_requests_of_the_same_moment_go_together_and_equal_texts_once(
    batcher: Batcher, node: _Node
) -> None:
    first, second = await asyncio.gather(_embed(batcher, "a", "b"), _embed(batcher, "b", "c"))
    assert len(node.calls) == 1
    assert sorted(node.calls[0]) == ["a", "b", "c"]
    assert set(first) == {"a", "b"}  # type: ignore[call-overload]
    assert set(second) == {"b", "c"}  # type: ignore[call-overload]


async def test_what_comes_while_a_call_is_under_way_waits_for_company(
    batcher: Batcher, node: _Node
) -> None:
    node.gate.clear()
    tasks = [_embed(batcher, "a")]
    await _settle()
    for text in "bcd":
        tasks.append(_embed(batcher, text))
        await _settle()
    assert node.calls == [["a"]]
    tasks.append(_embed(batcher, "e"))  # the batch is full
    await _settle()
    assert node.calls == [["a"], ["b", "c", "d", "e"]]
    node.gate.set()
    await asyncio.gather(*tasks)


async def test_what_waits_goes_when_the_window_is_over(node: _Node) -> None:
    batcher = Batcher(node.embed, Limits(texts=4, window_s=0.0, calls=2))
    node.gate.clear()
    tasks = [_embed(batcher, "a")]
    await _settle()
    tasks.append(_embed(batcher, "b"))
    await _settle()
    assert node.calls == [["a"], ["b"]]
    node.gate.set()
    await asyncio.gather(*tasks)


async def test_no_more_calls_than_allowed_are_under_way(batcher: Batcher, node: _Node) -> None:
    node.gate.clear()
    task = _embed(batcher, *(str(n) for n in range(20)))
    await _settle()
    assert [len(call) for call in node.calls] == [4, 4]
    node.gate.set()
    assert len(await task) == 20  # type: ignore[arg-type]
    assert [len(call) for call in node.calls] == [4] * 5


async def test_a_long_request_does_not_hold_up_a_short_one(batcher: Batcher, node: _Node) -> None:
    node.gate.clear()
    long = _embed(batcher, *(str(n) for n in range(20)))
    await _settle()
    short = _embed(batcher, "short")
    await _settle()
    node.gate.set()
    await asyncio.gather(long, short)
    assert any("short" in call for call in node.calls[2:4])


async def test_an_error_in_a_text_fails_only_its_request_with_its_own_index(
    batcher: Batcher, node: _Node
) -> None:
    good, bad, also_good = await asyncio.gather(
        _embed(batcher, "a", "b"),
        _embed(batcher, "c", "bad"),
        _embed(batcher, "b"),
        return_exceptions=True,
    )
    assert set(good) == {"a", "b"}  # type: ignore[arg-type]
    assert set(also_good) == {"b"}  # type: ignore[arg-type]
    assert isinstance(bad, MeshError)
    assert bad.reason_name == "INPUT_TOO_LONG"
    assert bad.param == "input[1]"
    assert bad.message == "input[1] is longer than the model's context of 512 tokens."
    assert bad.metadata == {"index": "1", "max_tokens": "512"}


async def test_the_index_is_that_of_the_request_and_not_of_its_part(
    batcher: Batcher, node: _Node
) -> None:
    with pytest.raises(MeshError) as caught:
        await batcher.embed("m", _texts("a", "b", "c", "d", "e", "bad", "g"), "r")
    assert caught.value.param == "input[5]"
    assert caught.value.metadata["index"] == "5"
    assert caught.value.message.startswith("input[5] ")


async def test_a_failure_of_the_node_fails_all_of_its_batch_once(
    batcher: Batcher, node: _Node
) -> None:
    node.failure = MeshError(errors_pb2.ERROR_REASON_NO_NODE_AVAILABLE, "none")
    results = await asyncio.gather(
        _embed(batcher, "a"), _embed(batcher, "b"), return_exceptions=True
    )
    assert [type(result) for result in results] == [MeshError, MeshError]
    assert results[0] is not results[1]
    assert len(node.calls) == 1


async def test_a_fault_does_not_leave_anyone_waiting(batcher: Batcher, node: _Node) -> None:
    node.failure = RuntimeError("a fault")
    with pytest.raises(RuntimeError):
        await batcher.embed("m", _texts("a"), "r")
    await _settle()
    assert batcher._lanes == {}


async def test_texts_of_a_caller_who_left_are_not_sent(batcher: Batcher, node: _Node) -> None:
    node.gate.clear()
    first = _embed(batcher, "a")
    await _settle()
    left, stays = _embed(batcher, "b"), _embed(batcher, "c")
    await _settle()
    left.cancel()
    await _settle()
    node.gate.set()
    await asyncio.gather(first, stays)
    assert node.calls == [["a"], ["c"]]
    assert node.cancelled == 0


async def test_a_call_that_nobody_waits_for_is_stopped(batcher: Batcher, node: _Node) -> None:
    node.gate.clear()
    one, two = _embed(batcher, "a"), _embed(batcher, "b")
    await _settle()
    one.cancel()
    await _settle()
    assert node.cancelled == 0
    two.cancel()
    await _settle()
    assert node.cancelled == 1
    await _settle()
    assert batcher._lanes == {}


async def test_models_do_not_mix(batcher: Batcher, node: _Node) -> None:
    await asyncio.gather(batcher.embed("m", _texts("a"), "r"), batcher.embed("n", _texts("b"), "r"))
    assert sorted(node.calls) == [["a"], ["b"]]


async def test_what_waits_is_bounded(
    batcher: Batcher, node: _Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "MAX_WAITING_TEXTS", 10)
    node.gate.clear()
    task = _embed(batcher, *(str(n) for n in range(10)))
    await _settle()
    with pytest.raises(MeshError) as caught:
        await batcher.embed("n", _texts(*(str(n) for n in range(9))), "r")
    assert caught.value.reason_name == "NO_NODE_AVAILABLE"
    node.gate.set()
    await task


async def test_a_batch_is_bounded_in_size(batcher: Batcher, node: _Node) -> None:
    big = "x" * 600_000
    await batcher.embed("m", _texts(big + "1", big + "2", "c"), "r")
    assert [len(call) for call in node.calls] == [1, 2]
