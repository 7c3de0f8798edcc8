"""Reads requests for responses: what is asked, and how it is put to an engine.

Every field is one of four: translated, checked and shown in the answer, passed on as it is because
the mesh does not know it, or refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.jobs import fields as check
from services.jobs.errors import refuse, unsupported
from services.jobs.responses import formats, tools
from services.jobs.responses.items import Item, read

_MAX_ID_CHARS = 64
_MAX_USER_CHARS = 512

# What needs something that the mesh does not have; the values that mean "not wanted" pass.
_UNSUPPORTED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "n": ((None, 1), "a response is one answer"),
    "background": ((None, False), "responses in the background are not supported; use a batch"),
    "conversation": ((None,), "conversations are not supported; use `previous_response_id`"),
    "prompt": ((None,), "stored prompts are not supported; use `instructions` and `input`"),
    "truncation": ((None, "disabled"), "only `disabled` is supported"),
    "service_tier": ((None, "auto", "default"), "only `auto` and `default` are supported"),
    "moderation": ((None,), "is not supported; a key's guardrails are set by its administrator"),
    "context_management": ((None, []), "is not supported"),
    "access_programs": ((None,), "is not supported"),
    "image": ((None,), "is not supported"),
    "prompt_cache_options": ((None,), "is not supported"),
    "prompt_cache_retention": ((None, "in_memory"), "only `in_memory` is supported"),
}

# Words of chat completions that another field here says.
_FOREIGN = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include",
    "functions": "tools",
    "function_call": "tool_choice",
    "verbosity": "text.verbosity",
}

_KNOWN = frozenset(
    {
        *_UNSUPPORTED,
        *("model", "input", "instructions", "stream", "stream_options", "store", "include"),
        *("previous_response_id", "max_output_tokens", "max_tool_calls", "metadata", "user"),
        *("parallel_tool_calls", "prompt_cache_key", "reasoning", "safety_identifier"),
        *("temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p"),
    }
)


@dataclass(frozen=True)
class ResponseRequest:
    """A request that was checked.

    Attributes:
        model: The model that it names.
        is_stream: Whether the caller wants server-sent events.
        is_stored: Whether the response is to be kept.
        previous_id: The response that it goes on from; None for a new conversation.
        instructions: What stands before the conversation; None for nothing.
        items: What this turn brings.
        chat: The fields of the chat but for its messages.
        shown: The fields that the response shows again.
        wants_logprobs: Whether the caller wants log probabilities of the text.
    """

    model: str
    is_stream: bool
    is_stored: bool
    previous_id: str | None
    instructions: str | None
    items: list[Item]
    chat: dict[str, Any]
    shown: dict[str, Any]
    wants_logprobs: bool


def parse(body: bytes) -> ResponseRequest:
    """Reads a request.

    Raises:
        MeshError: `INVALID_JSON`; `INVALID_ARGUMENT` or `UNSUPPORTED` with the field at fault.
    """
    said = check.body(body)
    _refuse_fields(said)
    model = check.text(said, "model", 200)
    if not model:
        refuse("model", "must be the name of a model")
    previous = check.text(said, "previous_response_id", _MAX_ID_CHARS)
    instructions = check.text(said, "instructions")
    items = read(said["input"]) if said.get("input") is not None else []
    if not items and previous is None and instructions is None:
        refuse("input", "must be a text or a list that is not empty")
    is_stream = check.boolean(said, "stream") or False
    is_stored = check.boolean(said, "store")
    check.mapping(said, "stream_options")
    wants_logprobs = _include(said)
    chat = {
        "model": model,
        **{name: value for name, value in said.items() if name not in _KNOWN},
        "stream": is_stream,
    }
    if is_stream:
        chat["stream_options"] = {"include_usage": True}
    shown = {
        "max_output_tokens": check.integer(said, "max_output_tokens", 1),
        "max_tool_calls": check.integer(said, "max_tool_calls", 1),
        "metadata": check.metadata(said),
        "parallel_tool_calls": True
        if (p := check.boolean(said, "parallel_tool_calls")) is None
        else p,
        "prompt_cache_key": check.text(said, "prompt_cache_key", _MAX_USER_CHARS),
        "reasoning": _reasoning(said, chat),
        "safety_identifier": check.text(said, "safety_identifier", _MAX_USER_CHARS),
        "service_tier": "default",
        "temperature": check.number(said, "temperature", 0, 2),
        "text": formats.read(said, chat),
        "tool_choice": "auto",
        "tools": tools.read(said, chat),
        "top_logprobs": check.integer(said, "top_logprobs", 0, 20) or 0,
        "top_p": check.number(said, "top_p", 0, 1),
        "truncation": "disabled",
        "user": check.text(said, "user", _MAX_USER_CHARS),
    }
    shown["tool_choice"] = tools.read_choice(said, chat)
    for name in ("temperature", "top_p", "user"):
        if shown[name] is not None:
            chat[name] = shown[name]
    if shown["max_output_tokens"] is not None:
        chat["max_tokens"] = shown["max_output_tokens"]
    if "tools" in chat and said.get("parallel_tool_calls") is not None:
        chat["parallel_tool_calls"] = shown["parallel_tool_calls"]
    if wants_logprobs:
        chat["logprobs"] = True
        if shown["top_logprobs"]:
            chat["top_logprobs"] = shown["top_logprobs"]
    elif shown["top_logprobs"]:
        refuse("top_logprobs", "needs `message.output_text.logprobs` in `include`")
    return ResponseRequest(
        model=model,
        is_stream=is_stream,
        is_stored=is_stored is not False,
        previous_id=previous,
        instructions=instructions,
        items=items,
        chat=chat,
        shown=shown,
        wants_logprobs=wants_logprobs,
    )


def _refuse_fields(said: Mapping[str, Any]) -> None:
    for name, (allowed, why) in _UNSUPPORTED.items():
        if name in said and said[name] not in allowed:
            raise unsupported(name, why)
    for name, instead in _FOREIGN.items():
        if said.get(name) is not None:
            raise unsupported(name, f"is no field of responses; use `{instead}`")


def _include(said: Mapping[str, Any]) -> bool:
    """Checks what is to be included; returns whether log probabilities are."""
    wanted = said.get("include")
    if wanted is None:
        return False
    if not isinstance(wanted, list):
        refuse("include", "must be a list")
    for index, name in enumerate(wanted):
        # Pictures are in the input as they came, always.
        if name not in ("message.output_text.logprobs", "message.input_image.image_url"):
            raise unsupported(f"include[{index}]", "the mesh has nothing of the kind to include")
    return "message.output_text.logprobs" in wanted


def _reasoning(said: Mapping[str, Any], chat: dict[str, Any]) -> dict[str, Any]:
    wanted = check.mapping(said, "reasoning")
    effort = check.text(wanted, "effort", 32, "reasoning.")
    # `auto` is as much as there is, and engines show their reasoning without a summary.
    for name in ("summary", "generate_summary"):
        if wanted.get(name) not in (None, "auto"):
            raise unsupported(f"reasoning.{name}", "engines make no summaries of their reasoning")
    for name in wanted:
        if name not in ("effort", "summary", "generate_summary") and wanted[name] is not None:
            raise unsupported(f"reasoning.{name}", "is not supported")
    if effort is not None:
        chat["reasoning_effort"] = effort
    return {"effort": effort, "summary": None}
