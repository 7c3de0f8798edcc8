"""What OpenAI documents and what engines were recorded to say survives the way through messages."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from exchanges import FOLDER, load
from services.inference.typed import answers, chats, completions

CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "developer", "content": "be brief", "name": "boss"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "https://a/b.png", "detail": "high"}},
                {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
                {"type": "file", "file": {"file_id": "file-1"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:,x"}},
            ],
        },
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": None, "audio": {"id": "audio_1"}},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "c2", "type": "custom", "custom": {"name": "g", "input": "text"}},
            ],
        },
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    ],
    "audio": {"voice": "alloy", "format": "mp3"},
    "frequency_penalty": 0.5,
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 100,
    "max_tokens": 90,
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "n": 2,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": [{"type": "text", "text": t} for t in "ab"]},
    "presence_penalty": -0.5,
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "s",
            "description": "d",
            "schema": {"type": "object", "properties": {"a": {"enum": [1, 2.5, None, "x"]}}},
            "strict": True,
        },
    },
    "safety_identifier": "p",
    "seed": 2**53,
    "service_tier": "flex",
    "stop": ["a", "b"],
    "store": True,
    "temperature": 0,
    "tool_choice": {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "auto",
            "tools": [
                {"type": "function", "function": {"name": "f"}},
                {"type": "custom", "custom": {"name": "g"}},
            ],
        },
    },
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "f",
                "description": "d",
                "parameters": {"type": "object"},
                "strict": False,
            },
        },
        {
            "type": "custom",
            "custom": {
                "name": "g",
                "format": {
                    "type": "grammar",
                    "grammar": {"definition": "start: 'a'", "syntax": "lark"},
                },
            },
        },
    ],
    "top_logprobs": 20,
    "top_p": 1,
    "user": "u",
    "verbosity": "low",
    "web_search_options": {
        "search_context_size": "low",
        "user_location": {"type": "approximate", "approximate": {"city": "Berlin"}},
    },
    # Given up for tools, and what only some engines know.
    "functions": [{"name": "f", "parameters": {}}],
    "function_call": "auto",
    "top_k": 4,
    "chat_template_kwargs": {"enable_thinking": False},
}
LIKELY = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
TOP = {"token": "b", "logprob": -1.5, "bytes": None}
ANSWER: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "m",
    "service_tier": "default",
    "system_fingerprint": "fp",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "hi",
                "annotations": [
                    {
                        "type": "url_citation",
                        "url_citation": {
                            "start_index": 0,
                            "end_index": 2,
                            "title": "t",
                            "url": "https://a",
                        },
                    }
                ],
                "audio": {"id": "a", "expires_at": 5, "data": "UklGRg==", "transcript": "hi"},
            },
            "finish_reason": "stop",
            "logprobs": {"content": [{**LIKELY, "top_logprobs": [TOP]}], "refusal": [LIKELY]},
        }
    ],
    "usage": {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "total_tokens": 30,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 3},
        "completion_tokens_details": {
            "reasoning_tokens": 4,
            "audio_tokens": 5,
            "accepted_prediction_tokens": 6,
            "rejected_prediction_tokens": 7,
        },
    },
}
COMPLETION: dict[str, Any] = {
    "model": "m",
    "prompt": ["a", "b"],
    "suffix": "s",
    "echo": True,
    "n": 2,
    "best_of": 3,
    "logprobs": 5,
    "max_tokens": 0,
    "stop": ["x"],
    "seed": 1,
    "user": "u",
    "logit_bias": {"1": 2.5},
    "temperature": 2,
    "top_p": 0.1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "min_p": 0.1,
}
COMPLETED: dict[str, Any] = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1700000000,
    "model": "m",
    "system_fingerprint": "fp",
    "choices": [
        {
            "index": 1,
            "text": " b",
            "finish_reason": "length",
            "logprobs": {
                "tokens": ["a", " b"],
                "token_logprobs": [None, -0.5],
                "top_logprobs": [None, {" b": -0.5, "c": -2.0}],
                "text_offset": [0, 1],
            },
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def test_everything_that_a_chat_may_ask() -> None:
    typed = chats.chat_from_json(CHAT)
    assert chats.chat_to_json(typed, stream=False) == CHAT
    # They pass where the message has no field of its own for them.
    assert {"functions", "top_k"} <= set(typed.engine_options.fields)


def test_null_is_the_same_as_nothing() -> None:
    needed = {"model": "m", "messages": CHAT["messages"][:1]}
    own = set(CHAT) - {"functions", "function_call", "top_k", "chat_template_kwargs"}
    nulls = dict.fromkeys(own - set(needed))
    assert chats.chat_to_json(chats.chat_from_json({**nulls, **needed}), stream=False) == needed
    asked = {"model": "m", "prompt": "a"}
    nulls = dict.fromkeys(set(COMPLETION) - set(asked) - {"min_p"})
    typed = completions.completion_from_json({**nulls, **asked})
    assert completions.completion_to_json(typed, stream=False) == asked


def test_everything_that_a_chat_may_answer() -> None:
    typed = answers.chat_response_from_json(ANSWER, "m")
    assert answers.chat_response_to_json(typed) == ANSWER


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1, 2], [3]]])
def test_everything_that_a_completion_may_ask(prompt: object) -> None:
    fields = {**COMPLETION, "prompt": prompt}
    typed = completions.completion_from_json(fields)
    assert completions.completion_to_json(typed, stream=False) == fields


def test_everything_that_a_completion_may_answer() -> None:
    typed = answers.completion_response_from_json(COMPLETED, "m")
    assert answers.completion_response_to_json(typed) == COMPLETED


def recorded(kind: str) -> list[Any]:
    cases = [(path, load(path)) for path in sorted(FOLDER.glob("*/*.json"))]
    return [
        pytest.param(path, id=f"{path.parent.name}-{path.stem}")
        for path, case in cases
        if case.get("asked", {}).get("kind") == kind and "answered" in case
    ]


@pytest.mark.parametrize("path", recorded("chat"))
def test_recorded_chats(path: Path) -> None:
    case = load(path)
    body = case["asked"]["body"]
    back = chats.chat_to_json(chats.chat_from_json(body), stream=bool(body.get("stream")))
    if body.get("stream"):
        back.pop("stream_options")
    assert plainly(back) == plainly({k: v for k, v in body.items() if k != "stream_options"})
    for said in objects(case["answered"]):
        if "choices" not in said or "delta" in str(said.get("object")):
            continue
        if said.get("object") == "chat.completion.chunk":
            check_event(said)
        else:
            typed = answers.chat_response_from_json(said, said["model"])
            assert known(answers.chat_response_to_json(typed)) == known(said)


@pytest.mark.parametrize("path", recorded("completion"))
def test_recorded_completions(path: Path) -> None:
    case = load(path)
    body = {k: v for k, v in case["asked"]["body"].items() if k != "stream_options"}
    is_stream = bool(body.get("stream"))
    back = completions.completion_to_json(completions.completion_from_json(body), stream=is_stream)
    back.pop("stream_options", None)
    assert plainly(back) == plainly(body)
    for said in objects(case["answered"]):
        if "choices" in said:
            pieces = answers.pieces_from_json(said)
            assert "".join(p.text for p in pieces) == "".join(c["text"] for c in said["choices"])


def check_event(said: dict[str, Any]) -> None:
    deltas = answers.deltas_from_json(said)
    for choice in said["choices"]:
        told = {k: v for k, v in choice["delta"].items() if v and k != "role"}
        (delta,) = [d for d in deltas if d.index == choice["index"]] or [None]
        if delta is None:
            assert not told and not choice.get("finish_reason")
            continue
        assert delta.content == told.get("content", "")
        thoughts = told.get("reasoning_content") or told.get("reasoning") or ""
        assert delta.reasoning_content == thoughts
        assert [c.arguments for c in delta.tool_calls] == [
            call["function"].get("arguments") or "" for call in told.get("tool_calls", ())
        ]
        reason = answers.FINISH_REASONS.get(choice.get("finish_reason") or "", 0)
        assert delta.finish_reason == reason


def objects(answered: Any) -> list[dict[str, Any]]:
    if isinstance(answered, dict):
        return [answered]
    text = answered if isinstance(answered, str) else "\n".join(answered)
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [orjson.loads(line) for line in lines if line != "[DONE]"]


TOPS = ("id", "created", "model", "system_fingerprint", "choices", "usage")
CHOICES = ("index", "finish_reason", "message", "logprobs")
MESSAGES = ("role", "content", "refusal", "reasoning_content", "tool_calls")


def known(said: dict[str, Any]) -> Any:
    """What OpenAI documents of an answer, and no nulls."""
    top = {name: said[name] for name in TOPS if said.get(name) not in (None, "")}
    top["choices"] = [
        {name: choice[name] for name in CHOICES if name in choice} for choice in said["choices"]
    ]
    for choice in top["choices"]:
        message = choice["message"]
        choice["message"] = {name: message[name] for name in MESSAGES if message.get(name)}
    if usage := top.get("usage"):
        counts = ("prompt_tokens", "completion_tokens", "total_tokens")
        top["usage"] = {name: usage[name] for name in counts}
    return bare(top)


def bare(value: Any) -> Any:
    """JSON without nulls, and without what engines add to tokens and calls."""
    if isinstance(value, dict):
        extra = {"id", "index"} if "logprob" in value or "function" in value else set()
        return {k: bare(v) for k, v in value.items() if v is not None and k not in extra}
    return [bare(each) for each in value] if isinstance(value, list) else value


def plainly(body: dict[str, Any]) -> Any:
    """A request with one form for what has two."""
    body = dict(body)
    if isinstance(body.get("stop"), str):
        body["stop"] = [body["stop"]]
    if isinstance(body.get("prompt"), list) and len(body["prompt"]) == 1:
        body["prompt"] = body["prompt"][0]
    if body.get("stream") is False:
        del body["stream"]
    for message in body.get("messages", ()):
        content = message.get("content")
        if isinstance(content, list) and [p["type"] for p in content] == ["text"]:
            message["content"] = content[0]["text"]
    return bare(body)
