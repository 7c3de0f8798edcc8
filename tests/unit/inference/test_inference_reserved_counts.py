"""What limits reserve by, no engine may read in another way than auth does."""

from typing import Any

import orjson
import pytest

from infermesh.errors.v1 import errors_pb2
from services.inference import requests
from services.kit.errors import MeshError

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n", "best_of"])
@pytest.mark.parametrize("value", ["50", 50.5, 50.0, True, [50], {"a": 1}, -1])
def test_counts_are_whole_numbers(name: str, value: Any) -> None:
    with pytest.raises(MeshError) as caught:
        requests.parse("chat", orjson.dumps({**CHAT, name: value}))
    assert caught.value.reason == errors_pb2.ERROR_REASON_INVALID_ARGUMENT
    assert caught.value.param == name


@pytest.mark.parametrize("name", ["n_predict", "n_cmpl"])
def test_no_engine_is_asked_for_more_than_was_reserved(name: str) -> None:
    with pytest.raises(MeshError) as caught:
        requests.parse("chat", orjson.dumps({**CHAT, "max_tokens": 1, name: 1000}))
    assert caught.value.param == name


@pytest.mark.parametrize(
    "fields", [{}, {"max_tokens": None}, {"max_tokens": 0}, {"max_completion_tokens": 7, "n": 2}]
)
def test_the_rest_passes(fields: dict[str, Any]) -> None:
    assert requests.parse("chat", orjson.dumps({**CHAT, **fields})).fields == {**CHAT, **fields}
