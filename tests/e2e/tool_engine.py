"""A small engine whose model calls a tool, as the official SDKs' helpers for tools need it."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from e2e.recording import RecordingEngine


class ToolEngine(RecordingEngine):
    """Thinks, calls its tool, and then says what the tool said; breaks off when told to."""

    def chunks(self, *, with_usage: bool) -> list[dict[str, Any]]:
        head = super().chunks(with_usage=False)[0]

        def chunk(finish: str | None = None, **delta: object) -> dict[str, Any]:
            return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        last = self.bodies[-1]["messages"][-1]
        if last["role"] == "tool":
            told = f"It is {last['content']}."
            said = [chunk(role="assistant", content=told), chunk("stop")]
        elif last["content"] == "break":
            return [chunk(content="It"), {"error": {"message": "I broke.", "code": 500}}]
        else:
            name = {"name": "get_weather", "arguments": ""}
            call = {"index": 0, "id": "functions.get_weather:0", "type": "function"}
            rest = {"index": 0, "function": {"arguments": '{"city": "Paris"}'}}
            said = [
                chunk(role="assistant", reasoning_content="I need"),
                chunk(reasoning_content=" a tool."),
                chunk(tool_calls=[{**call, "function": name}]),
                chunk(tool_calls=[rest]),
                chunk("tool_calls"),
            ]
        usage = {"prompt_tokens": 30, "completion_tokens": 7, "total_tokens": 37}
        return [*said, {**head, "choices": [], "usage": usage}] if with_usage else said

    def answer(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        for chunk in self.chunks(with_usage=False):
            delta = chunk["choices"][0]["delta"]
            for name in ("content", "reasoning_content"):
                message[name] = message.get(name, "") + delta.get(name, "")
            for call in delta.get("tool_calls", ()):
                made = message.setdefault("tool_calls", [{"function": {"arguments": ""}}])[0]
                arguments = made["function"]["arguments"] + call["function"]["arguments"]
                made |= call
                made["function"] = {"name": "get_weather", "arguments": arguments}
        finish = chunk["choices"][0]["finish_reason"]
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return {**super().answer(), "choices": [choice]}


@contextlib.contextmanager
def tool_engine(model: str) -> Iterator[ToolEngine]:
    """Gives an engine that listens, and ends it."""
    engine = ToolEngine(model)
    thread = threading.Thread(target=engine.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield engine
    finally:
        engine.server.shutdown()
        engine.server.server_close()
        thread.join(5)
