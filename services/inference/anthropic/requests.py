"""Reads Anthropic's requests and makes OpenAI's chats of them.

Three kinds of fields: those that OpenAI has too, under these names or others; those that change
nothing of the answer and are taken as said (`cache_control`, `service_tier`); all others are
refused with their name.
"""

from dataclasses import dataclass
from typing import Any, TypeGuard

from services.inference import errors, extensions
from services.inference.anthropic import messages, tools
from services.inference.anthropic.checks import (
    cache_control,
    flag_of,
    list_of,
    object_of,
    only,
)
from services.inference.requests import MAX_MESSAGES, OpenAIRequest, check, parsed, written

_COMMON = extensions.NAMES | {
    *("model", "messages", "system", "tools", "tool_choice", "thinking", "output_config"),
    *("cache_control", "speed"),
}
_CREATE = _COMMON | {
    *("max_tokens", "stop_sequences", "stream", "temperature", "top_p", "top_k"),
    *("metadata", "service_tier"),
}
_MAX_TOKENS = 2**31 - 1
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_NO_WORDS_WITHOUT = {
    "container": "the mesh has no containers.",
    "mcp_servers": "the mesh calls no tools itself.",
    "context_management": "the mesh edits no conversations.",
    "inference_geo": "routing policies decide where the mesh answers.",
    "diagnostics": "the mesh keeps no earlier requests to compare with.",
}


@dataclass(frozen=True, slots=True)
class Thinking:
    """How much the model is to think before it answers.

    Attributes:
        budget: The most tokens; 0 for not at all; None leaves it to the model.
        is_shown: Whether the caller wants to read it.
    """

    budget: int | None
    is_shown: bool = True


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was read.

    Attributes:
        request: The same as OpenAI's chat.
        stops: Texts at which the answer ends.
        thinking: What it says of thinking; None where it says nothing.
        is_begun: Whether the last message is the assistant's, to be gone on with.
    """

    request: OpenAIRequest
    stops: frozenset[str]
    thinking: Thinking | None
    is_begun: bool


def parse(body: bytes, *, counts_only: bool = False) -> Asked:
    """Reads a request.

    Args:
        body: Anthropic's JSON.
        counts_only: Whether it asks for the tokens of the prompt, and for no answer.

    Raises:
        MeshError: `INVALID_JSON`; `INVALID_ARGUMENT` or `UNSUPPORTED` with the field at fault.
    """
    fields = parsed(body)
    for name, why in _NO_WORDS_WITHOUT.items():
        if fields.get(name) is not None:
            raise errors.unsupported(name, why)
    only(fields, _COMMON if counts_only else _CREATE)
    cache_control(fields, "")
    if fields.get("speed") not in (None, "standard"):
        raise errors.unsupported("speed", "the mesh has one speed.")
    chat: dict[str, Any] = {"model": fields.get("model")}
    if not counts_only:
        _add_limits(chat, fields)
    _add_output(chat, fields.get("output_config"))
    chat |= tools.to_openai(fields.get("tools"), fields.get("tool_choice"))
    chat |= {name: fields[name] for name in extensions.NAMES & fields.keys()}
    turns = fields.get("messages")
    if isinstance(turns, list) and len(turns) > MAX_MESSAGES:  # before equal roles become one
        raise errors.invalid("messages", f"must be at most {MAX_MESSAGES}")
    chat["messages"] = messages.to_openai(fields.get("system"), turns)
    return Asked(
        request=check("chat", written(chat), chat),
        stops=frozenset(chat.get("stop", ())),
        thinking=_thinking(fields.get("thinking"), chat.get("max_tokens")),
        is_begun=chat["messages"][-1]["role"] == "assistant",
    )


def add(request: OpenAIRequest, more: dict[str, Any]) -> None:
    """Adds fields that the engine needs besides."""
    if more:
        request.fields.update(more)
        request.body = written(request.fields)


def _add_limits(chat: dict[str, Any], fields: dict[str, Any]) -> None:
    most = fields.get("max_tokens")
    if not _is_whole(most) or not 1 <= most <= _MAX_TOKENS:
        raise errors.invalid("max_tokens", f"must be a number from 1 to {_MAX_TOKENS}")
    chat["max_tokens"] = most
    if flag_of(fields, "stream", ""):
        chat["stream"] = True
    for name in ("temperature", "top_p"):
        value = fields.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise errors.invalid(name, "must be a number from 0 to 1")
            chat[name] = value
    top_k = fields.get("top_k")
    if top_k is not None:
        if not _is_whole(top_k) or not 0 <= top_k <= _MAX_TOKENS:
            raise errors.invalid("top_k", "must be a whole number of at least 0")
        chat["top_k"] = top_k
    stops = fields.get("stop_sequences")
    if stops is not None:
        for index, stop in enumerate(list_of(stops, "stop_sequences")):
            if not isinstance(stop, str) or not stop:
                raise errors.invalid(f"stop_sequences[{index}]", "must be a text")
        if stops:
            chat["stop"] = stops
    _add_user(chat, fields.get("metadata"))
    if fields.get("service_tier") not in (None, "auto", "standard_only"):
        raise errors.invalid("service_tier", "must be auto or standard_only")


def _add_user(chat: dict[str, Any], metadata: object) -> None:
    if metadata is None:
        return
    fields = object_of(metadata, "metadata")
    only(fields, frozenset({"user_id"}), "metadata")
    user = fields.get("user_id")
    if user is not None:
        if not isinstance(user, str):
            raise errors.invalid("metadata.user_id", "must be a text")
        chat["user"] = user


def _add_output(chat: dict[str, Any], config: object) -> None:
    if config is None:
        return
    fields = object_of(config, "output_config")
    only(fields, frozenset({"effort", "format"}), "output_config")
    effort = fields.get("effort")
    if effort is not None:
        if effort not in _EFFORTS:
            raise errors.invalid("output_config.effort", f"must be one of {', '.join(_EFFORTS)}")
        chat["reasoning_effort"] = effort
    form = fields.get("format")
    if form is not None:
        where = "output_config.format"
        form = object_of(form, where)
        only(form, frozenset({"type", "schema"}), where)
        if form.get("type") != "json_schema":
            raise errors.invalid(f"{where}.type", "must be json_schema")
        schema = object_of(form.get("schema"), f"{where}.schema")
        described = {"name": "answer", "schema": schema, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": described}


def _thinking(config: object, most: int | None) -> Thinking | None:
    if config is None:
        return None
    fields = object_of(config, "thinking")
    only(fields, frozenset({"type", "budget_tokens", "display"}), "thinking")
    display = fields.get("display")
    if display not in (None, "summarized", "omitted"):
        raise errors.invalid("thinking.display", "must be summarized or omitted")
    is_shown = display != "omitted"
    kind, budget = fields.get("type"), fields.get("budget_tokens")
    if kind == "enabled":
        if not _is_whole(budget) or budget < 1:
            raise errors.invalid("thinking.budget_tokens", "must be a number of at least 1")
        if most is not None and budget >= most:
            raise errors.invalid("thinking.budget_tokens", "must be less than max_tokens")
        return Thinking(budget, is_shown)
    if budget is not None:
        raise errors.invalid("thinking.budget_tokens", "belongs to the type enabled")
    if kind == "adaptive":
        return Thinking(None, is_shown)
    if kind == "disabled":
        return Thinking(0)
    if kind == "between_tools":
        raise errors.unsupported("thinking.type", "engines think before they answer, or not.")
    raise errors.invalid("thinking.type", "must be enabled, disabled or adaptive")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
