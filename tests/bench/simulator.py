"""An engine that computes nothing: OpenAI's HTTP surface at the speed of the event loop.

For load tests only, where the engine must cost as little as can be so that the figures are the
mesh's own. It says the same words every time. What it reports is true of what it sends: a chunk is
a token, a prompt has one token for each four characters, rounded up.

    python tests/bench/simulator.py --port 17031 --model sim --chunks 64 --delay-ms 0

With `--delay-ms 0` each chunk is a write of its own, one for each turn of the event loop.
"""

import argparse
import asyncio
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import httptools
import orjson
import uvloop

MAX_BODY_BYTES = 64 * 1024 * 1024
_CREATED = 1_700_000_000


def _reply(status: str, body: bytes, content_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def _error(status: str, message: str, code: str | None = None) -> bytes:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return _reply(status, orjson.dumps({"error": error}))


def _event(value: object) -> bytes:
    """Returns a server-sent event in the framing of a chunked body."""
    data = value if isinstance(value, bytes) else orjson.dumps(value)
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_STREAM_END = _event(b"[DONE]") + b"0\r\n\r\n"
_NOT_FOUND = _error("404 Not Found", "no such address")
_BAD_JSON = _error("400 Bad Request", "the body is not a JSON object")


class Words:
    """The answers in one of the two dialects, made once.

    Args:
        chat: Chat's form, else that of text completions.
        chunks: The tokens of a full answer.
    """

    def __init__(self, model: str, chunks: int, chat: bool) -> None:
        self._chat = chat
        kind = "chat.completion.chunk" if chat else "text_completion"
        self._base = {
            "id": "chatcmpl-simulated" if chat else "cmpl-simulated",
            "object": kind,
            "created": _CREATED,
            "model": model,
        }
        self._tokens = [f" word{i}" for i in range(chunks)]
        self.chunks = chunks
        first = [self._piece({"role": "assistant", "content": ""}, None)] if chat else []
        self.first = b"".join(first)
        self.pieces = [self._piece(self._text(token), None) for token in self._tokens]
        self._unary = {chunks: self._split_unary(chunks)}

    def last(self, tokens: int) -> bytes:
        """Returns the event that says why an answer of so many tokens ended."""
        return self._piece({} if self._chat else {"text": ""}, self._reason(tokens))

    def usage_event(self, prompt: int, tokens: int) -> bytes:
        """Returns the event that carries the usage."""
        return _event({**self._base, "choices": [], "usage": _usage(prompt, tokens)})

    def unary(self, prompt: int, tokens: int) -> bytes:
        """Returns the whole answer as one HTTP response."""
        before, after = self._unary.get(tokens) or self._split_unary(tokens)
        return _reply("200 OK", before + orjson.dumps(_usage(prompt, tokens)) + after)

    def _split_unary(self, tokens: int) -> tuple[bytes, bytes]:
        text = "".join(self._tokens[:tokens])
        choice: dict[str, object] = {"index": 0, "finish_reason": self._reason(tokens)}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        kind = "chat.completion" if self._chat else "text_completion"
        body = {**self._base, "object": kind, "choices": [choice], "usage": 0}
        return orjson.dumps(body)[:-2], b"}"

    def _text(self, token: str) -> dict[str, str]:
        return {"content": token} if self._chat else {"text": token}

    def _reason(self, tokens: int) -> str:
        return "stop" if tokens == self.chunks else "length"

    def _piece(self, said: dict[str, str], reason: str | None) -> bytes:
        choice = {"index": 0, "finish_reason": reason}
        choice |= {"delta": said} if self._chat else said
        return _event({**self._base, "choices": [choice]})


def _usage(prompt: int, tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "total_tokens": prompt + tokens,
    }


def prompt_tokens(request: dict[str, Any]) -> int:
    """Returns a fourth of the prompt's characters, rounded up; only text counts."""
    characters = 0
    for message in request.get("messages") or ():
        content = message.get("content")
        if isinstance(content, str):
            characters += len(content)
        else:
            characters += sum(len(part.get("text") or "") for part in content or ())
    prompt = request.get("prompt")
    if prompt:
        characters += len(prompt) if isinstance(prompt, str) else sum(map(len, prompt))
    return -(-characters // 4)


@dataclass
class Engine:
    """What all connections share."""

    model: str
    delay_s: float
    ttft_s: float
    chat: Words
    completion: Words
    running: int = 0
    answered: int = 0

    def metrics(self) -> bytes:
        """Returns the load under vLLM's names; nothing ever waits here."""
        labels = f'{{model_name="{self.model}"}}'
        text = (
            f"# TYPE vllm:num_requests_running gauge\n"
            f"vllm:num_requests_running{labels} {self.running}\n"
            f"# TYPE vllm:num_requests_waiting gauge\n"
            f"vllm:num_requests_waiting{labels} 0\n"
            f"# TYPE vllm:kv_cache_usage_perc gauge\n"
            f"vllm:kv_cache_usage_perc{labels} 0\n"
            f"# TYPE vllm:request_success_total counter\n"
            f"vllm:request_success_total{labels} {self.answered}\n"
        )
        return _reply("200 OK", text.encode(), "text/plain; version=0.0.4")

    def models(self) -> bytes:
        """Returns OpenAI's list of models."""
        model = {
            "id": self.model,
            "object": "model",
            "created": _CREATED,
            "owned_by": "simulator",
            "max_model_len": 131_072,
        }
        return _reply("200 OK", orjson.dumps({"object": "list", "data": [model]}))


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection; requests on it are answered one after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._url = b""
        self._body: list[bytes] = []
        self._size = 0
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._timer: asyncio.Handle | None = None
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._busy:
            self._busy = False
            self._engine.running -= 1

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.write(_error("400 Bad Request", "not HTTP"))
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > MAX_BODY_BYTES:
            self._transport.abort()
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body, self._size = [], 0
        if self._busy:
            self._waiting.append((self._url, body))
            self._transport.pause_reading()
        else:
            self._handle(self._url, body)

    def _handle(self, url: bytes, body: bytes) -> None:
        if url == b"/v1/chat/completions":
            self._generate(self._engine.chat, body)
        elif url == b"/v1/completions":
            self._generate(self._engine.completion, body)
        elif url == b"/metrics":
            self._transport.write(self._engine.metrics())
        elif url == b"/v1/models":
            self._transport.write(self._engine.models())
        elif url == b"/health":
            self._transport.write(_reply("200 OK", b'{"status":"ok"}'))
        else:
            self._transport.write(_NOT_FOUND)

    def _generate(self, words: Words, body: bytes) -> None:
        engine = self._engine
        try:
            request = orjson.loads(body)
            prompt = prompt_tokens(request)
            limit = request.get("max_completion_tokens") or request.get("max_tokens")
            tokens = min(words.chunks, limit) if limit else words.chunks
        except (orjson.JSONDecodeError, AttributeError, TypeError):
            self._transport.write(_BAD_JSON)
            return
        if request.get("model") != engine.model:
            message = f"no such model: {request.get('model')}"
            self._transport.write(_error("404 Not Found", message, "model_not_found"))
            return
        self._busy = True
        engine.running += 1
        if request.get("stream"):
            self._transport.write(_STREAM_HEAD)
            options = request.get("stream_options") or {}
            tail = words.last(tokens)
            if options.get("include_usage"):
                tail += words.usage_event(prompt, tokens)
            step = partial(self._stream, words, 0, tokens, tail + _STREAM_END)
            self._after(engine.ttft_s, step)
        else:
            answer = words.unary(prompt, tokens)
            total_s = engine.ttft_s + engine.delay_s * tokens
            if total_s:
                self._after(total_s, partial(self._finish, answer))
            else:
                self._finish(answer)

    def _stream(self, words: Words, sent: int, tokens: int, tail: bytes) -> None:
        if sent < tokens:
            piece = words.pieces[sent]
            self._transport.write(piece if sent else words.first + piece)
            step = partial(self._stream, words, sent + 1, tokens, tail)
            self._after(self._engine.delay_s, step)
        else:
            self._finish(tail)

    def _after(self, delay_s: float, step: Callable[[], None]) -> None:
        if delay_s:
            self._timer = self._loop.call_later(delay_s, step)
        else:
            self._timer = self._loop.call_soon(step)

    def _finish(self, data: bytes) -> None:
        self._transport.write(data)
        self._timer = None
        self._busy = False
        self._engine.running -= 1
        self._engine.answered += 1
        while self._waiting and not self._busy:
            self._handle(*self._waiting.popleft())
        if not self._busy and not self._transport.is_closing():
            self._transport.resume_reading()


async def serve(engine: Engine, host: str, port: int) -> None:
    """Serves until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await loop.create_server(lambda: Connection(engine), host, port, backlog=4096)
    await stop.wait()
    server.close()


def main() -> None:
    """Reads the command line and serves."""
    parser = argparse.ArgumentParser(description="Simulates an OpenAI-compatible engine.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="sim", help="The name of the one model.")
    parser.add_argument("--chunks", type=int, default=64, help="Tokens of an answer.")
    parser.add_argument("--delay-ms", type=float, default=0, help="Between two tokens.")
    parser.add_argument("--ttft-ms", type=float, default=0, help="Before the first token.")
    args = parser.parse_args()
    engine = Engine(
        model=args.model,
        delay_s=args.delay_ms / 1000,
        ttft_s=args.ttft_ms / 1000,
        chat=Words(args.model, args.chunks, chat=True),
        completion=Words(args.model, args.chunks, chat=False),
    )
    uvloop.run(serve(engine, args.host, args.port))


if __name__ == "__main__":
    main()
