"""What auth is told of a line is what Envoy tells of a caller's call with the same body."""

from typing import Any

import orjson
import pytest

from services.jobs.batches.admission import RPCS, request_of
from services.jobs.batches.claim import Claim
from services.jobs.batches.store import Batch

_CHATS = "/v1/chat/completions"


def said_of(endpoint: str = _CHATS, **body: Any) -> Any:
    batch = Batch("batch_a", "key_a", "in_progress", {"endpoint": endpoint})
    text = orjson.dumps({"model": "m", **body})
    return request_of(Claim(batch, 1, "a", text, 1)), len(text)


def test_who_and_what() -> None:
    said, size = said_of(messages=[])
    assert (said.key_id, said.rpc, said.model) == ("key_a", RPCS[_CHATS], "m")
    assert said.prompt_bytes == size
    assert (said.max_tokens, said.answer_count) == (0, 1)
    assert said.request_id


@pytest.mark.parametrize(
    ("body", "max_tokens", "answers"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 9}, 9, 1),
        ({"max_tokens": 5.0, "n": 2, "best_of": 3}, 5, 3),
        ({"max_tokens": -5, "n": 0}, 0, 1),
        ({"max_tokens": "5", "n": "x", "best_of": None}, 0, 1),
        ({"max_tokens": 1e300, "n": 10**6}, 2**53, 128),
    ],
)
def test_what_may_be_made(body: dict[str, Any], max_tokens: int, answers: int) -> None:
    said, _ = said_of(**body)
    assert (said.max_tokens, said.answer_count) == (max_tokens, answers)


@pytest.mark.parametrize(
    ("prompt", "answers"),
    [("a", 2), (["a"], 2), (["a", "b", "c"], 6), ([[1], [2]], 4), ([1, 2, 3], 2), ([], 2)],
)
def test_each_prompt_gets_answers(prompt: object, answers: int) -> None:
    said, _ = said_of("/v1/completions", prompt=prompt, n=2)
    assert said.answer_count == answers


def test_fallbacks_as_many_as_a_node_takes() -> None:
    said, _ = said_of(fallback_models=["a", 3, *"bcdefghijk"])
    assert list(said.fallback_models) == list("abcdefg")
    assert list(said_of(fallback_models="a")[0].fallback_models) == []
    assert said_of(model="x" * 9999)[0].model == "x" * 4096
