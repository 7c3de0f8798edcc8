"""What the simulator says over HTTP, without a socket."""

import base64
import math
import struct
from typing import Any

import orjson
import pytest

from services.inference.simulator.api import Api
from services.inference.simulator.connection import Connection
from services.inference.simulator.options import EngineOptions
from simulated_time import SimulatedTime


class Wire:
    """The transport of a connection."""

    def __init__(self) -> None:
        self.sent = b""
        self.is_closed = self.is_aborted = self.is_paused = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def take(self) -> bytes:
        sent, self.sent = self.sent, b""
        return sent


class Caller:
    """A connection to a simulated engine."""

    def __init__(self, **options: Any) -> None:
        self.time = SimulatedTime()
        self.api = Api(EngineOptions(**options), self.time)
        self.wire = Wire()
        self.ended: list[Connection] = []
        self.connection = Connection(self.api, self.ended.append)
        self.connection.connection_made(self.wire)  # type: ignore[arg-type]

    def send(self, path: str, body: object = None, *, method: str = "", headers: str = "") -> None:
        data = b"" if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
        method = method or ("GET" if body is None else "POST")
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(data)}\r\n{headers}\r\n"
        )
        self.connection.data_received(head.encode() + data)

    def ask(self, path: str, body: object = None, **more: str) -> tuple[int, bytes]:
        self.send(path, body, **more)
        self.time.until(self.time.now + 1000)
        return self.reply()

    def reply(self) -> tuple[int, bytes]:
        head, _, rest = self.wire.take().partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), rest

    def json(self, path: str, body: object = None, *, status: int = 200, **more: str) -> Any:
        found, answer = self.ask(path, body, **more)
        assert found == status, answer
        return orjson.loads(answer)


def chat(**fields: object) -> dict[str, object]:
    return {"model": "sim", "messages": [{"role": "user", "content": "x" * 400}], **fields}


def events(body: bytes) -> list[Any]:
    """Reads a chunked body of server-sent events, framing checked."""
    data = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        count = int(size, 16)
        data += body[:count]
        assert body[count : count + 2] == b"\r\n"
        body = body[count + 2 :]
    assert data.endswith(b"data: [DONE]\n\n")
    return [orjson.loads(each[6:]) for each in data.split(b"\n\n")[:-2]]


def test_a_chat_says_what_it_took() -> None:
    answer = Caller(answer_tokens=5).json("/v1/chat/completions", chat())
    text = answer["choices"][0]["message"]["content"]
    assert len(text) == 5 * 4
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {
        "prompt_tokens": -(-len("<|user|>" + "x" * 400 + "<|assistant|>") // 4),
        "completion_tokens": 5,
        "total_tokens": 106 + 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_a_limit_ends_an_answer() -> None:
    answer = Caller().json("/v1/chat/completions", chat(max_tokens=3))
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("rate", [0.0, 50.0])
def test_a_stream_says_the_same_as_a_whole_answer(rate: float) -> None:
    caller = Caller(answer_tokens=30, decode_rate=rate, chunk_interval_s=0.1)
    whole = caller.json("/v1/chat/completions", chat())
    status, body = caller.ask(
        "/v1/chat/completions", chat(stream=True, stream_options={"include_usage": True})
    )
    assert status == 200
    told = events(body)
    deltas = [event["choices"][0]["delta"] for event in told if event["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    assert told[-2]["choices"][0]["finish_reason"] == "stop"
    assert told[-1]["usage"] == whole["usage"]
    assert len(deltas) == (32 if rate == 0.0 else 9)


def test_a_stream_has_usage_only_where_it_is_asked_for() -> None:
    _, body = Caller().ask("/v1/chat/completions", chat(stream=True))
    assert not any("usage" in event for event in events(body))


def test_completions_stream_text() -> None:
    caller = Caller(answer_tokens=3)
    whole = caller.json("/v1/completions", {"model": "sim", "prompt": ["hello"]})
    _, body = caller.ask("/v1/completions", {"model": "sim", "prompt": "hello", "stream": True})
    text = "".join(event["choices"][0]["text"] for event in events(body))
    assert text == whole["choices"][0]["text"]
    assert whole["usage"]["prompt_tokens"] == 2


def test_cached_tokens_stand_in_the_usage_and_the_metrics() -> None:
    caller = Caller(blocks=100, answer_tokens=8)
    caller.json("/v1/chat/completions", chat())
    again = caller.json("/v1/chat/completions", chat())
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 96
    _, page = caller.ask("/metrics")
    values = dict(line.rsplit(" ", 1) for line in page.decode().splitlines() if line[0] != "#")
    label = '{engine="0",model_name="sim"}'
    assert values["vllm:prefix_cache_queries_total" + label] == "212"
    assert values["vllm:prefix_cache_hits_total" + label] == "96"
    assert values["vllm:prompt_tokens_total" + label] == "212"
    assert values["vllm:generation_tokens_total" + label] == "16"
    config = next(key for key in values if key.startswith("vllm:cache_config_info"))
    assert 'num_gpu_blocks="100"' in config
    assert 'block_size="16"' in config


def test_gauges_show_who_runs_and_who_waits() -> None:
    caller = Caller(slots=1, decode_rate=10.0, blocks=100)
    other = Connection(caller.api, lambda _: None)
    other.connection_made(Wire())  # type: ignore[arg-type]
    caller.send("/v1/chat/completions", chat(stream=True, max_tokens=20))
    body = orjson.dumps(chat())
    other.data_received(
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    )
    page = caller.api.pages[b"GET", b"/metrics"](b"").decode()
    assert 'vllm:num_requests_running{engine="0",model_name="sim"} 1\n' in page
    assert 'vllm:num_requests_waiting{engine="0",model_name="sim"} 1\n' in page
    assert 'vllm:kv_cache_usage_perc{engine="0",model_name="sim"} 0.08\n' in page
    caller.connection.connection_lost(None)
    other.connection_lost(None)
    page = caller.api.pages[b"GET", b"/metrics"](b"").decode()
    assert 'vllm:num_requests_running{engine="0",model_name="sim"} 0\n' in page
    assert 'vllm:kv_cache_usage_perc{engine="0",model_name="sim"} 0\n' in page


def test_a_hang_up_stops_the_engine_at_once() -> None:
    caller = Caller(decode_rate=10.0)
    caller.send("/v1/chat/completions", chat(stream=True))
    caller.time.until(1.0)
    assert caller.api.engine.running == 1
    caller.connection.connection_lost(None)
    assert caller.api.engine.running == 0
    assert caller.time.pending == 0
    assert caller.ended == [caller.connection]


def test_requests_on_a_connection_are_answered_in_order() -> None:
    caller = Caller(decode_rate=10.0, answer_tokens=2)
    caller.send("/v1/completions", {"prompt": "a", "max_tokens": 1})
    caller.send("/version")
    caller.send("/v1/completions", {"prompt": "a", "max_tokens": 2})
    assert caller.wire.sent == b""
    assert caller.wire.is_paused
    caller.time.until(1000)
    whole = caller.wire.take()
    first, version, last = (
        whole.find(mark)
        for mark in (b'"completion_tokens":1', b'"version"', b'"completion_tokens":2')
    )
    assert 0 <= first < version < last
    assert not caller.wire.is_paused


def test_many_requests_at_once_do_not_pile_up() -> None:
    caller = Caller()
    caller.connection.data_received(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n" * 5000)
    assert caller.wire.sent.count(b"200 OK") == 5000


def test_a_connection_that_shall_close_does() -> None:
    caller = Caller()
    caller.ask("/health", headers="connection: close\r\n")
    assert caller.wire.is_closed


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "3"}, "max_tokens"),
        ({"priority": "high"}, "priority"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_is_not_simulated_is_refused(fields: dict[str, object], param: str) -> None:
    error = Caller().json("/v1/chat/completions", chat(**fields), status=400)["error"]
    assert (error["param"], error["code"]) == (param, 400)


def test_a_prompt_that_is_too_long_is_refused() -> None:
    error = Caller(blocks=4).json("/v1/chat/completions", chat(), status=400)["error"]
    assert "maximum context length is 64 tokens" in error["message"]


def test_unknown_models_and_addresses_are_not_found() -> None:
    caller = Caller()
    error = caller.json("/v1/chat/completions", chat(model="other"), status=404)["error"]
    assert error["type"] == "NotFoundError"
    assert caller.ask("/v1/nothing")[0] == 404
    assert caller.ask("/v1/chat/completions")[0] == 404
    assert caller.ask("/v1/embeddings", {"input": "a"})[0] == 404


@pytest.mark.parametrize("body", [b"{", b"[]", b'"a"'])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    assert Caller().ask("/v1/chat/completions", body)[0] == 400


def test_what_is_not_http_ends_the_connection() -> None:
    caller = Caller()
    caller.connection.data_received(b"\x16\x03\x01 nonsense\r\n\r\n")
    assert b" 400 " in caller.wire.sent
    assert caller.wire.is_closed


def test_a_full_queue_is_refused() -> None:
    caller = Caller(slots=1, max_queue=0, decode_rate=1.0)
    caller.send("/v1/chat/completions", chat(stream=True))
    other, wire = Connection(caller.api, lambda _: None), Wire()
    other.connection_made(wire)  # type: ignore[arg-type]
    body = orjson.dumps(chat())
    request = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s"
    other.data_received(request % (len(body), body))
    assert b" 503 " in wire.sent
    assert caller.api.engine.running == 1


def test_adapters_come_and_go() -> None:
    caller = Caller(adapters=("a",), decode_rate=10.0)
    load = {"lora_name": "b", "lora_path": "/b"}
    assert caller.ask("/v1/load_lora_adapter", load)[0] == 200
    assert caller.ask("/v1/load_lora_adapter", load)[0] == 400
    models = caller.json("/v1/models")["data"]
    assert [(m["id"], m["parent"]) for m in models] == [("sim", None), ("a", "sim"), ("b", "sim")]
    assert caller.json("/v1/chat/completions", chat(model="b"))["model"] == "b"
    caller.send("/v1/chat/completions", chat(model="b", stream=True))
    page = caller.api.pages[b"GET", b"/metrics"](b"").decode()
    assert 'max_lora="2",running_lora_adapters="b",waiting_lora_adapters=""' in page
    caller.time.until(caller.time.now + 1000)
    caller.wire.take()
    assert caller.ask("/v1/unload_lora_adapter", {"lora_name": "b"})[0] == 200
    assert caller.ask("/v1/unload_lora_adapter", {"lora_name": "b"})[0] == 404
    assert caller.ask("/v1/chat/completions", chat(model="b"))[0] == 404


def test_vectors_are_the_same_for_the_same_text_and_of_length_one() -> None:
    caller = Caller(embeds=True, dimensions=8)
    answer = caller.json("/v1/embeddings", {"model": "sim", "input": ["one", "two", "one"]})
    one, two, again = (each["embedding"] for each in answer["data"])
    assert one == again != two
    assert math.hypot(*one) == pytest.approx(1.0)
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    packed = caller.json("/v1/embeddings", {"input": "one", "encoding_format": "base64"})
    values = struct.unpack("<8f", base64.b64decode(packed["data"][0]["embedding"]))
    assert list(values) == pytest.approx(one)
    assert caller.ask("/v1/chat/completions", chat())[0] == 404


@pytest.mark.parametrize("given", [None, "", [], [""], [1], ["x" * 10_000_000]])
def test_what_cannot_be_embedded_is_refused(given: object) -> None:
    assert Caller(embeds=True).ask("/v1/embeddings", {"input": given})[0] == 400


def test_switches_are_set_shown_and_healed() -> None:
    caller = Caller()
    assert caller.json("/sim/faults", {"error_rate": 0.5})["error_rate"] == 0.5
    assert [caller.ask("/v1/chat/completions", chat())[0] for _ in range(4)] == [200, 500] * 2
    assert caller.ask("/health")[0] == 200
    caller.json("/sim/faults", {"slow": 0}, status=400)
    assert caller.json("/sim/faults")["error_rate"] == 0.5
    caller.json("/sim/faults", {})
    assert [caller.ask("/v1/chat/completions", chat())[0] for _ in range(4)] == [200] * 4


def test_connections_can_be_dropped() -> None:
    caller = Caller()
    caller.json("/sim/faults", {"drop_rate": 1})
    caller.send("/v1/chat/completions", chat())
    assert caller.wire.is_aborted
    assert caller.wire.sent == b""


def test_metrics_can_be_nan() -> None:
    caller = Caller()
    caller.json("/sim/faults", {"nan_metrics": True})
    _, page = caller.ask("/metrics")
    assert b'vllm:num_requests_running{engine="0",model_name="sim"} nan\n' in page


def test_the_cache_can_be_emptied() -> None:
    caller = Caller(blocks=100)
    caller.json("/v1/chat/completions", chat())
    assert caller.ask("/reset_prefix_cache", b"", method="POST")[0] == 200
    again = caller.json("/v1/chat/completions", chat())
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_tokens_are_counted_as_they_are_computed() -> None:
    assert Caller().json("/tokenize", {"model": "sim", "prompt": "x" * 9})["count"] == 3
