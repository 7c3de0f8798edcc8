"""A small Ollama for tests: one model, the same answer to everybody, and pulls of any name."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PAUSE_S = 0.3
"""Between the lines of a pull: nodes tell the latest that they know, not every line."""

WORDS = ("Hello", " there", "!")
TIMES = {"load_duration": 3_000_000, "prompt_eval_duration": 5_000_000, "eval_duration": 7_000_000}


class ScriptedOllama(ThreadingHTTPServer):
    """Keeps what it was asked."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], *models: str) -> None:
        super().__init__(address, _Handler)
        self.models = list(models)
        self.asked: list[tuple[str, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedOllama

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        names = [{"name": f"{name}:latest", "digest": "d"} for name in self.server.models]
        pages = {
            "/api/version": {"version": "0.12.11"},
            "/api/tags": {"models": names},
            "/api/ps": {"models": names},
        }
        self._answer(pages.get(self.path), 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.path, body))
        if self.path == "/api/show":
            info = {"general.architecture": "a", "a.context_length": 4096}
            self._answer({"capabilities": ["completion", "tools"], "model_info": info})
        elif self.path == "/api/pull":
            self.server.models.append(body["model"])
            self._lines(
                {"status": "pulling manifest"},
                {"status": "pulling x", "digest": "x", "total": 10, "completed": 4},
                {"status": "success"},
                pause_s=PAUSE_S,
            )
        elif self.path == "/api/chat":
            pieces = [{"message": {"role": "assistant", "content": each}} for each in WORDS]
            self._lines(*pieces, {"message": {"role": "assistant", "content": ""}, **_END})
        elif self.path == "/api/generate":
            self._answer({"done": True, "response": ""})
        else:
            self._answer(None, 404)

    def _answer(self, said: dict[str, Any] | None, status: int = 200) -> None:
        data = json.dumps(said or {"error": "not found"}).encode()
        self.send_response(200 if said else status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _lines(self, *said: dict[str, Any], pause_s: float = 0.0) -> None:
        lines = [json.dumps(each).encode() + b"\n" for each in said]
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.send_header("content-length", str(sum(map(len, lines))))
        self.end_headers()
        for line in lines:
            self.wfile.write(line)
            time.sleep(pause_s)


_END = {
    "done": True,
    "done_reason": "stop",
    "prompt_eval_count": 11,
    "eval_count": len(WORDS),
    "total_duration": 20_000_000,
    **TIMES,
}


@contextmanager
def scripted_ollama(*models: str) -> Iterator[ScriptedOllama]:
    """Runs one that serves these models."""
    server = ScriptedOllama(("127.0.0.1", 0), *models)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
