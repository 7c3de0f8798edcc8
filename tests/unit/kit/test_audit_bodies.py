"""What of a request's body gets into the audit log: its form, and none of its texts."""

import functools
import hashlib
from typing import Any

import orjson
import pytest

from infermesh.auth.v1 import audit_service_pb2 as pb
from services.kit.audit_bodies import MAX_BYTES, redacted
from services.kit.audit_events import OutcomeRecorder
from services.kit.audit_inference import InferenceAudit
from services.kit.caller import Caller

SECRET = "my password is hunter2 and I live at 1 Example Road"


def seen(fields: dict[str, Any]) -> Any:
    return orjson.loads(redacted(fields))


def test_the_form_stays_and_texts_go() -> None:
    body = {
        "model": "org/m:1",
        "stream": True,
        "temperature": 0.5,
        "messages": [
            {"role": "user", "content": SECRET, "name": "hunter2"},
            {"role": "user", "content": [{"type": "text", "text": "hunter2"}]},
        ],
        "stop": None,
    }
    trace = {"chars": len(SECRET), "sha256": hashlib.sha256(SECRET.encode()).hexdigest()}
    assert seen(body) == {
        "model": "org/m:1",
        "stream": True,
        "temperature": 0.5,
        "messages": [
            {"role": "user", "content": trace, "name": {"chars": 7}},
            {"role": "user", "content": [{"type": "text", "text": {"chars": 7}}]},
        ],
        "stop": None,
    }


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": SECRET},
        {"prompt": [SECRET, SECRET]},
        {"input": SECRET},
        {"role": SECRET},  # no word of the API's
        {"type": f"{SECRET}"},
        {"metadata": {SECRET: SECRET}},
        {SECRET: 1},
        {"tools": [{"type": "function", "function": {"name": "f", "description": SECRET}}]},
        {"messages": [{"role": "tool", "content": [{"type": "text", "text": [SECRET]}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": SECRET}}]}]},
        {"image_url": {"url": f"data:image/png;base64,{SECRET}"}},
        functools.reduce(lambda inner, _: {"a": inner}, range(14), SECRET),
        {"tools": [{"function": {"parameters": {"hunter2": {"Example": 1}}}}]},
        {"messages": [{"content": SECRET}] * 5000},
    ],
)
def test_no_word_of_the_callers_is_kept(body: dict[str, Any]) -> None:
    found = redacted(body).decode()
    assert "hunter2" not in found
    assert "Example" not in found
    assert len(found) <= MAX_BYTES


def test_tokens_are_a_text_too() -> None:
    assert seen({"prompt": list(range(9))}) == {"prompt": {"items": 9}}
    assert seen({"prompt": [list(range(900))] * 2}) == {"prompt": [{"items": 900}] * 2}


def test_what_is_long_is_bounded() -> None:
    assert seen({"messages": [{"content": "x"}] * 100})["messages"][-1] == {"items": 36}
    wide = {f"field{n}": {f"f{m}": SECRET for m in range(60)} for n in range(60)}
    found = seen(wide)
    assert found["too_long_bytes"] > MAX_BYTES
    assert len(found["fields"]) == 60
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    assert len(redacted({"deep": deep})) < 100


@pytest.mark.parametrize("text", ["\ud800" * 40, "é" * 40, "\0" * 40])
def test_any_text_has_a_trace(text: str) -> None:
    assert len(seen({"prompt": text})["prompt"]["sha256"]) == 64


def test_an_event_tells_who_asked_what_of_whom() -> None:
    events: list[tuple[pb.AuditEvent, bool]] = []

    def append(data: bytes, must: bool) -> None:
        events.append((pb.AuditEvent.FromString(data), must))

    recorder = OutcomeRecorder(append)
    caller = Caller(request_id="r", attempt=2, tenant="acme", key_id="key_a", model="m")
    InferenceAudit(recorder, "node-1").note(caller, "chat", "m", {"model": "m", "prompt": SECRET})
    [(event, must)] = events
    assert (event.kind, event.key_id, event.tenant) == (pb.AUDIT_KIND_INFERENCE, "key_a", "acme")
    assert (event.request_id, event.resource, must) == ("r", "m", False)
    told = orjson.loads(event.after)
    assert (told["node"], told["attempt"], told["operation"]) == ("node-1", 2, "chat")
    assert told["request"]["model"] == "m"


def test_a_full_disk_stops_no_request() -> None:
    def append(_: bytes, __: bool) -> None:
        raise OSError("full")

    caller = Caller(request_id="r", attempt=1, tenant="t", key_id="k", model="m")
    InferenceAudit(OutcomeRecorder(append), "n").note(caller, "chat", "m", {})
