"""How `infermesh bench` reads answers, and what it asks."""

import itertools
import json
from array import array
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from services.cli.bench.answer import Call, Reading
from services.cli.bench.plan import Plan
from services.cli.bench.prompts import bodies


def event(**said: object) -> bytes:
    return b"data: " + json.dumps(said).encode() + b"\n\n"


def chunk(delta: dict[str, object]) -> bytes:
    return event(choices=[{"delta": delta}])


_USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 4},
}
_STREAM = (
    b": a comment\n\n",
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "hm"}),
    chunk({"content": "é"}),
    chunk({"tool_calls": [{"index": 0}]}),
    chunk({}),
    event(choices=[], usage=_USAGE),
    b"data: [DONE]\n\n",
)


def read(pieces: Iterator[tuple[float, bytes]] | list[tuple[float, bytes]], **kind: bool) -> Call:
    """Returns the call of an answer that came in pieces, each at its time."""
    call = Call(0.0)
    reading = Reading(call, is_stream=kind.get("is_stream", True))
    reading.header(b"X-Mesh-Node", b"node-1")
    reading.header(b"x-mesh-cache", b"miss")
    reading.status(200 if kind.get("is_good", True) else 429)
    now = 0.0
    for now, data in pieces:
        reading.body(data, now)
    reading.end(now)
    return call


def test_times_are_those_of_chunks_that_say_something() -> None:
    call = read([(float(at), data) for at, data in enumerate(_STREAM)])
    assert (call.first, call.last) == (2.0, 4.0)
    assert call.gaps == array("d", [1.0, 1.0])
    assert (call.prompt_tokens, call.output_tokens, call.cached_tokens) == (9, 3, 4)
    assert (call.node, call.cache, call.error) == ("node-1", "miss", "")
    assert call.tpot_s == 1.0


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_cuts_make_no_difference(size: int) -> None:
    whole = b"".join(_STREAM)
    pieces = [(1.0, whole[at : at + size]) for at in range(0, len(whole), size)]
    call = read(pieces)
    assert (len(call.gaps), call.output_tokens, call.error) == (2, 3, "")


def test_a_stream_without_its_end_has_failed() -> None:
    assert read([(1.0, b"".join(_STREAM[:-1]))]).error == "stream_cut"


def test_an_error_in_a_stream_is_its_error_even_with_an_end() -> None:
    broken = event(error={"code": "engine_lost", "message": "x"})
    assert read([(1.0, _STREAM[1] + broken + _STREAM[-1])]).error == "engine_lost"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"error": {"code": "rate_limited", "type": "t"}}', "rate_limited"),
        (b'{"error": {"code": null, "type": "t"}}', "t"),
        (b'{"error": "words"}', "error"),
        (b"<html>", "http_429"),
        (b"", "http_429"),
    ],
)
def test_refusals_are_told_by_their_code(body: bytes, code: str) -> None:
    assert read([(1.0, body)], is_good=False).error == code


def test_a_whole_answer_ends_with_its_last_byte() -> None:
    body = json.dumps({"usage": _USAGE}).encode()
    call = read([(1.0, body[:5]), (2.5, body[5:])], is_stream=False)
    assert (call.first, call.last, call.output_tokens, call.tpot_s) == (None, 2.5, 3, None)
    assert read([(1.0, b"nonsense")], is_stream=False).error == "not_json"


def test_an_answer_without_end_is_not_kept() -> None:
    with pytest.raises(ValueError, match="too long"):
        read([(1.0, b"x" * 1024 * 1024)] * 17)


def words(body: bytes) -> list[str]:
    (message,) = orjson.loads(body)["messages"]
    return str(message["content"]).split()


def test_prompts_share_a_beginning_and_nothing_else() -> None:
    made = bodies(Plan(model="m", prompt_tokens=200, shared=0.25, seed=7))
    first, second = words(made(0)), words(made(1))
    assert len(first) == len(second) == 200
    assert first[:50] == second[:50]
    assert first[50:66] != second[50:66]
    assert words(made(0)) == first
    assert words(bodies(Plan(model="m", prompt_tokens=200, seed=8))(0))[:50] != first[:50]


@pytest.mark.parametrize(("tokens", "shared"), [(1, 0.0), (1, 1.0), (10, 0.5), (20_000, 0.0)])
def test_prompts_have_their_length(tokens: int, shared: float) -> None:
    made = bodies(Plan(model="m", prompt_tokens=tokens, shared=shared))
    assert {len(words(made(number))) for number in range(5)} == {tokens}


def test_fields_of_calls() -> None:
    plan = Plan(model="m", output_tokens=5, body='{"ignore_eos": true, "max_tokens": 6}')
    asked = orjson.loads(bodies(plan)(0))
    assert asked["ignore_eos"] is True and asked["max_tokens"] == 6
    assert asked["stream_options"] == {"include_usage": True}
    assert "stream" not in orjson.loads(bodies(Plan(model="m", is_stream=False))(0))
    for bad in ("{", "[]"):
        with pytest.raises(ValueError, match="JSON object"):
            bodies(Plan(model="m", body=bad))


def test_prompts_from_a_file_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "temperature": 0}\n\n{"messages": [{"role": "user"}]}\n"b"\n')
    made = bodies(Plan(model="m", prompts=str(path), output_tokens=5))
    asked = [orjson.loads(made(number)) for number in range(4)]
    assert asked[0] == asked[3]
    assert asked[0]["messages"] == [{"role": "user", "content": "a"}]
    assert (asked[0]["temperature"], asked[0]["max_tokens"]) == (0, 5)
    assert asked[1]["messages"] == [{"role": "user"}]
    assert asked[2]["messages"][0]["content"] == "b"


@pytest.mark.parametrize(
    ("text", "said"), [("x\n", "line 1"), ("\n3\n", "line 2"), ("{}\n", "neither"), ("", "no p")]
)
def test_files_that_hold_no_prompts(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        bodies(Plan(model="m", prompts=str(path)))


def test_calls_begin_as_often_as_the_rate_says() -> None:
    even = Plan(model="m", rate=4, is_even=True, duration_s=1)
    assert list(even.beginnings()) == [0, 0.25, 0.5, 0.75]
    chance = list(Plan(model="m", rate=100, duration_s=100, seed=1).beginnings())
    assert 9_500 < len(chance) < 10_500
    gaps = [b - a for a, b in itertools.pairwise(chance)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert 0.95 < spread / mean < 1.05  # as of an exponential distribution
    assert len(list(Plan(model="m", rate=100, requests=7).beginnings())) == 7
    assert not list(Plan(model="m").beginnings())
