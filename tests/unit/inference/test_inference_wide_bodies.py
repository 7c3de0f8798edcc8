"""Objects of very many fields, which engines take minutes for."""

import orjson
import pytest

from services.inference.requests import parse
from services.kit.errors import MeshError

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x" * 70_000}]}
WIDE = {f"k{i}": 0 for i in range(1001)}


@pytest.mark.parametrize(
    "change",
    [
        WIDE,
        {"metadata": WIDE},
        {"tools": [{"function": {"parameters": {"properties": WIDE}}}]},
        {"x": [[[{"y": [WIDE]}]]]},
    ],
)
def test_one_object_of_very_many_fields_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(MeshError, match="over 1000 fields") as caught:
        parse("chat", orjson.dumps(CHAT | change))
    assert (caught.value.reason_name, caught.value.param) == ("INVALID_ARGUMENT", "body")


def test_many_messages_and_many_small_objects_pass() -> None:
    messages = [{"role": "user", "content": "x"}] * 4096
    assert parse("chat", orjson.dumps(CHAT | {"messages": messages})).model == "m"
    few = {f"k{i}": 0 for i in range(900)}
    assert parse("chat", orjson.dumps(CHAT | few)).model == "m"


def test_a_small_body_is_not_looked_through() -> None:
    small = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    assert parse("chat", orjson.dumps(small | WIDE)).model == "m"
