"""A small engine that speaks OpenAI's HTTP and remembers what it was asked."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from e2e.fleet import free_port

_USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


class RecordingEngine:
    """What the engine was asked, and how it answers.

    Attributes:
        url: Where it listens.
        bodies: The chats that it got, in order.
        status: The HTTP status that it answers chats with; an error's body for all but 200.
        code: The `code` in that body.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.bodies: list[dict[str, Any]] = []
        self.status = 200
        self.code: str | None = None
        self.server = ThreadingHTTPServer(("127.0.0.1", free_port()), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def chunks(self, *, with_usage: bool) -> list[dict[str, Any]]:
        """Returns the objects of a streamed answer."""
        head = {
            "id": "chatcmpl-recorded",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": self.model,
        }
        delta = {"role": "assistant", "content": "Yes"}
        found = [
            {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
            {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        ]
        return [*found, {**head, "choices": [], "usage": _USAGE}] if with_usage else found

    def answer(self) -> dict[str, Any]:
        """Returns a whole answer."""
        message = {"role": "assistant", "content": "Yes"}
        return {
            "id": "chatcmpl-recorded",
            "object": "chat.completion",
            "created": 1,
            "model": self.model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": _USAGE,
        }

    def _handler(engine) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                models = [{"id": engine.model, "object": "model", "created": 1, "owned_by": "me"}]
                self._send(200, "application/json", {"object": "list", "data": models})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                engine.bodies.append(body)
                if engine.status != 200:
                    error = {"message": "no", "type": "no", "param": None, "code": engine.code}
                    self._send(engine.status, "application/json", {"error": error})
                elif body.get("stream"):
                    wants_usage = (body.get("stream_options") or {}).get("include_usage", False)
                    chunks = engine.chunks(with_usage=wants_usage)
                    events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
                    text = "".join([*events, "data: [DONE]\n\n"])
                    self._send(200, "text/event-stream", text)
                else:
                    self._send(200, "application/json", engine.answer())

            def _send(self, status: int, kind: str, what: object) -> None:
                content = (what if isinstance(what, str) else json.dumps(what)).encode()
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        return Handler


@contextlib.contextmanager
def recording_engine(model: str) -> Iterator[RecordingEngine]:
    """Gives an engine that listens, and ends it."""
    engine = RecordingEngine(model)
    thread = threading.Thread(target=engine.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield engine
    finally:
        engine.server.shutdown()
        engine.server.server_close()
        thread.join(5)
