import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engines.llamacpp import LlamaCpp
from services.inference.engines.openai import OpenAICompatible
from services.inference.sse import MAX_EVENT_BYTES, StreamFilter, StreamReader
from services.inference.transport_errors import EngineConnectionError

DONE = b"data: [DONE]\n\n"


def event(data) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


def delta(finish_reason=None, index=0, **fields):
    return {"choices": [{"finish_reason": finish_reason, "index": index, "delta": fields}]}


ROLE = event(delta(role="assistant", content=None))
HELLO = event(delta(content="hello"))
# A text may say anything; inside JSON its quotes are escaped.
NASTY = event(delta(content='data: [DONE]\n\n"usage":{"prompt_tokens":9},"finish_reason":"stop"'))
LAST = delta("length")
USAGE = {"completion_tokens": 3, "prompt_tokens": 32}
TIMINGS = {"predicted_ms": 25.39}
PROGRESS = event({**delta(role="assistant", content=None), "prompt_progress": {"total": 36}})

ASKED = b"".join(
    [
        *(PROGRESS, PROGRESS, ROLE, HELLO, NASTY, event(LAST)),
        *(event({"choices": [], "usage": USAGE, "timings": TIMINGS}), DONE),
    ]
)
DIRECT = b"".join([ROLE, HELLO, NASTY, event({**LAST, "timings": TIMINGS}), DONE])


def make_filter(hides=True, engine=None):
    return StreamFilter(
        hides_usage=hides, hides_progress=hides, restore=(engine or LlamaCpp()).restore
    )


def run(stream, data, cuts):
    out = b""
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if start != end:
            out += stream.feed(data[start:end])
    return out + stream.rest()


@given(st.lists(st.integers(0, len(ASKED)), max_size=12).map(sorted))
def test_the_caller_gets_the_bytes_of_a_direct_call_however_they_come(cuts):
    stream = make_filter()
    assert run(stream, ASKED, cuts) == DIRECT
    assert stream.usages == [USAGE]
    assert stream.is_done
    assert stream.has_content
    assert not stream.is_in_event


@given(st.lists(st.integers(0, len(ASKED)), max_size=12).map(sorted))
def test_nothing_is_taken_from_who_asked_for_it(cuts):
    stream = make_filter(hides=False)
    assert run(stream, ASKED, cuts) == ASKED
    assert stream.usages == [USAGE]
    assert stream.is_done


@given(st.lists(st.integers(0, len(ASKED)), max_size=12).map(sorted), st.booleans())
def test_what_is_plain_is_what_feeding_gives(cuts, hides):
    fed, stream = make_filter(hides), make_filter(hides)
    for start, end in zip([0, *cuts], [*cuts, len(ASKED)], strict=True):
        piece = ASKED[start:end]
        wanted = fed.feed(piece) if piece else b""
        assert (stream.plain(piece) or stream.feed(piece)) == wanted
    assert stream.rest() == fed.rest()
    assert vars(stream) == vars(fed) | {"_restore": stream._restore}


def test_what_is_plain():
    stream = make_filter()
    assert not stream.plain(HELLO)  # nothing of the answer has come
    stream.feed(ROLE + HELLO)
    assert stream.plain(HELLO + NASTY) == HELLO + NASTY
    assert stream.plain(event({**delta(content="x"), "usage": None})) == event(delta(content="x"))
    for piece in (HELLO[:-1], event(LAST), event({"error": {}}), PROGRESS, HELLO + DONE, DONE):
        assert not stream.plain(piece)
    stream.feed(HELLO[:9])
    assert not stream.plain(HELLO[9:])
    stream.feed(HELLO[9:])
    assert stream.plain(HELLO)
    stream.feed(DONE)
    assert not stream.plain(HELLO)


def test_a_text_that_says_done_ends_nothing():
    stream = make_filter()
    stream.feed(HELLO + NASTY)
    assert not stream.is_done
    assert stream.usages == []


def test_content_is_not_the_role():
    stream = make_filter()
    stream.feed(ROLE)
    assert not stream.has_content
    stream.feed(HELLO)
    assert stream.has_content


def test_several_answers_each_with_its_usage():
    first = [event(delta("stop", 0)), event({"choices": [], "usage": USAGE, "timings": 1})]
    second = [event(delta("stop", 1)), event({"choices": [], "usage": USAGE, "timings": 2})]
    late = event(delta(content="late", index=1))
    stream = make_filter()
    out = stream.feed(b"".join([HELLO, *first, late, *second, DONE]))
    assert out == b"".join(
        [
            HELLO,
            event({**delta("stop", 0), "timings": 1}),
            late,
            event({**delta("stop", 1), "timings": 2}),
            DONE,
        ]
    )
    assert stream.usages == [USAGE, USAGE]


def test_null_usage_that_only_asking_caused_is_hidden():
    stream = make_filter(engine=OpenAICompatible())
    piece = event({**delta(content="a"), "usage": None})
    assert stream.feed(piece) == event(delta(content="a"))
    assert stream.feed(event({**LAST, "usage": None})) == b""
    assert stream.feed(event({"choices": [], "usage": USAGE}) + DONE) == event(LAST) + DONE


@given(st.lists(st.integers(0, 2000), max_size=12).map(sorted))
def test_null_usage_at_the_end_of_every_event_is_hidden_without_parsing_it(cuts):
    inner = {**delta(content="hello"), "timings": {"a": 1, "usage": None}}
    said = [delta(content="hello"), inner, delta(content=',"usage":null}\n\n'), delta("stop")]
    asked = b"".join(event({**each, "usage": None}) for each in said) + DONE
    stream = make_filter(engine=OpenAICompatible())
    kept = b"".join(map(event, said)) + DONE
    assert run(stream, asked, [min(cut, len(asked)) for cut in cuts]) == kept


def test_null_usage_that_the_caller_asked_for_stays():
    asked = event({**delta(content="hello"), "usage": None}) + event(LAST) + DONE
    assert run(make_filter(hides=False), asked, []) == asked


def test_comments_null_and_carriage_returns_pass():
    data = (
        b": ping\n\ndata: null\n\n" + HELLO.replace(b"\n", b"\r\n") + DONE.replace(b"\n", b"\r\n")
    )
    stream = make_filter(hides=False)
    assert stream.feed(data) == data
    assert stream.has_content
    assert stream.is_done
    reader = StreamReader()
    assert reader.read(data) == [delta(content="hello")]
    assert reader.is_done


def test_an_error_event_is_kept_apart():
    error = event({"error": {"code": 500, "message": "out of memory"}})
    stream = make_filter()
    assert stream.feed(HELLO + error + DONE) == HELLO
    assert stream.error == {"code": 500, "message": "out of memory"}
    assert stream.error_event == error
    assert not stream.is_done


def test_half_an_event_waits():
    stream = make_filter()
    assert stream.feed(HELLO + b"data: {") == HELLO
    assert stream.is_in_event


def test_an_event_without_end_is_a_failure():
    stream = make_filter()
    with pytest.raises(EngineConnectionError):
        for _ in range(MAX_EVENT_BYTES // 2**20 + 2):
            stream.feed(b"x" * 2**20)


def test_what_is_not_json_is_a_failure():
    with pytest.raises(EngineConnectionError):
        StreamReader().read(b"data: {oops\n\n")
