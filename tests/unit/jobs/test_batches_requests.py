"""A batch's lines are read however they are cut, and each fails for itself alone."""

import orjson
import pytest

from services.jobs.batches import requests
from services.jobs.batches.requests import Line, LineReader

URL = "/v1/chat/completions"


def good(name: str) -> bytes:
    return orjson.dumps({"custom_id": name, "method": "POST", "url": URL, "body": {"model": "m"}})


def read(text: bytes, size: int = 1 << 20) -> list[Line]:
    reader, found = LineReader(URL), []
    for start in range(0, len(text), size):
        found += reader.feed(text[start : start + size])
    return found + reader.finish()


@pytest.mark.parametrize("size", [1, 3, 50, 10_000])
def test_however_it_is_cut(size: int) -> None:
    text = b"\n".join([good("a"), b"", b"{", good("b"), b"  ", good("a"), good("c")])
    found = read(text, size)
    assert [(line.number, line.custom_id, line.error and line.error[0]) for line in found] == [
        (1, "a", None),
        (2, None, "invalid_json_line"),
        (3, "b", None),
        (4, "a", "duplicate_custom_id"),
        (5, "c", None),
    ]
    assert orjson.loads(found[0].body or b"") == {"model": "m", "priority": "low"}


def test_windows_line_ends_and_none_at_the_end() -> None:
    assert [line.error for line in read(good("a") + b"\r\n" + good("b"))] == [None, None]


def test_a_line_that_is_too_long_is_dropped_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_LINE_BYTES", 200)
    found = read(good("a") + b"\n" + b"x" * 1000 + b"\n" + good("b"), 100)
    assert [line.error and line.error[0] for line in found] == [None, "line_too_long", None]


def test_requests_have_ids_of_their_own() -> None:
    ids = {requests.request_id(b, n, t) for b in ("a", "b") for n in (1, 2) for t in (1, 2)}
    assert len(ids) == 8
    assert requests.request_id("a", 1, 1) == requests.request_id("a", 1, 1)


@pytest.mark.parametrize("levels", [255, 900])
def test_a_line_that_is_nested_too_deeply_is_its_own_matter(levels: int) -> None:
    bad = good("b")[:-2] + b',"x":' + b"[" * levels + b"]" * levels + b"}}"
    found = read(b"\n".join([good("a"), bad, good("c")]))
    assert [line.error and line.error[0] for line in found] == [None, "invalid_request", None]


@pytest.mark.parametrize("size", [1, 2, 10_000])
def test_a_byte_order_mark_before_the_first_line_is_skipped(size: int) -> None:
    mark = b"\xef\xbb\xbf"
    found = read(mark + good("a") + b"\r\n" + mark + good("b"), size)
    # In the middle it is a line's own matter, as everything is.
    assert [line.error and line.error[0] for line in found] == [None, "invalid_json_line"]
    assert read(mark) == []
