"""Reads OpenAI requests: what they ask for, and whether the mesh can pass them on."""

from dataclasses import dataclass
from typing import Any, Literal

import orjson

from services.inference import errors, extensions
from services.inference.fair_queue import Priority

Kind = Literal["chat", "completion"]

# Engines keep the order of fields in lists: what 100,000 fields cost llama.cpp is minutes, since
# each is looked for among all before it. Up to this size of a body it is a tenth of a second.
_SMALL_BODY_BYTES = 65536
_MAX_FIELDS = 1000

# As many as typed messages may have; what is not text counts over all messages.
MAX_MESSAGES = 4096
_MAX_TOOLS = 128
_MAX_PROMPTS = 128
_MAX_MEDIA = 128
_WORDS = ("text", "refusal")

# Limits reserve by these before the call, so that every engine must read them as auth does.
_COUNTS = ("max_tokens", "max_completion_tokens", "n", "best_of")
# What llama.cpp would take in their place, which nothing reserves by.
_ALIASES = {"n_predict": "max_tokens", "n_cmpl": "n"}


@dataclass(slots=True)
class OpenAIRequest:
    """A request that was read.

    Attributes:
        kind: What it asks for.
        body: Its JSON as the caller wrote it.
        fields: The same, parsed.
        model: The model that answers: the one that it names, until the node chooses another.
        is_stream: Whether the caller wants server-sent events.
        wants_usage: Whether the caller wants usage in the stream.
        n: How many answers for each prompt.
        priority: How urgent it is.
        cache: `hit` or `miss` where it may be answered with an earlier answer, `hit 0.971` where
            that answered a question so similar; else empty.
        wants_progress: Whether who reads the stream's objects wants the last of those that say how
            far the prompt is read, too.
    """

    kind: Kind
    body: bytes
    fields: dict[str, Any]
    model: str
    is_stream: bool
    wants_usage: bool
    n: int
    priority: Priority = Priority.NORMAL
    cache: str = ""
    wants_progress: bool = False


def parse(kind: Kind, body: bytes) -> OpenAIRequest:
    """Reads a request.

    Raises:
        MeshError: `INVALID_JSON` for what is not JSON, or is nested over 1,000 deep;
            `INVALID_ARGUMENT` for fields that no engine could make sense of.
    """
    return check(kind, body, parsed(body))


def parsed(body: bytes) -> dict[str, Any]:
    """Returns a body's fields.

    Raises:
        MeshError: `INVALID_JSON` for what is not JSON, or is nested over 1,000 deep.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise errors.invalid_json(f"The body is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise errors.invalid_json("The body is not a JSON object.")
    return fields


def written(fields: Any, option: int | None = None) -> bytes:
    """Returns what came from a caller as JSON; what can be read may be too deep to be written.

    Args:
        fields: What is to be written.
        option: One of orjson's.

    Raises:
        MeshError: `INVALID_JSON`: it is nested over 254 deep.
    """
    try:
        return orjson.dumps(fields, option=option)
    except orjson.JSONEncodeError as error:
        raise errors.invalid_json(f"The body is nested too deeply: {error}") from None


def check(kind: Kind, body: bytes, fields: dict[str, Any]) -> OpenAIRequest:
    """Checks a request that is parsed already. Raises like `parse`."""
    check_width(body, fields)
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise errors.invalid("model", "must be the name of a model")
    stream = fields.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise errors.invalid("stream", "must be true or false")
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise errors.invalid("stream_options", "must be an object")
    if kind == "chat":
        _check_messages(fields.get("messages"))
        tools = fields.get("tools")
        if tools is not None and (not isinstance(tools, list) or len(tools) > _MAX_TOOLS):
            raise errors.invalid("tools", f"must be a list of at most {_MAX_TOOLS}")
    else:
        _check_prompt(fields.get("prompt"))
    _check_counts(fields)
    _check_sampling(fields)
    n = fields.get("n")
    return OpenAIRequest(
        kind=kind,
        body=body,
        fields=fields,
        model=model,
        is_stream=bool(stream),
        wants_usage=bool(stream and options and options.get("include_usage")),
        n=n if isinstance(n, int) and n > 0 else 1,
        priority=extensions.check(fields),
    )


def _check_counts(fields: dict[str, Any]) -> None:
    for name in _COUNTS:
        value = fields.get(name)
        if value is not None and (type(value) is not int or value < 0):
            raise errors.invalid(name, "must be a whole number, not below 0")
    for alias, name in _ALIASES.items():
        if alias in fields:
            raise errors.invalid(alias, f"is called `{name}` here")


def _check_sampling(fields: dict[str, Any]) -> None:
    """Checks what llama.cpp would pass over where its form is wrong."""
    bias = fields.get("logit_bias")
    # As a list of pairs in llama.cpp's own form.
    if bias is not None and not isinstance(bias, dict | list):
        raise errors.invalid("logit_bias", "must be an object")
    if isinstance(bias, dict):
        for token, value in bias.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise errors.invalid(f"logit_bias.{token[:40]}", "must be a number")
    stop = fields.get("stop")
    if stop is not None and not isinstance(stop, str | list):
        raise errors.invalid("stop", "must be a text or a list of texts")
    if isinstance(stop, list):
        for index, each in enumerate(stop):
            if not isinstance(each, str):
                raise errors.invalid(f"stop[{index}]", "must be a text")
    form = fields.get("response_format")
    if form is not None and not isinstance(form, dict):
        raise errors.invalid("response_format", "must be an object")


def check_width(body: bytes, fields: dict[str, Any]) -> None:
    """Checks that no object in a long body is too wide.

    Raises:
        MeshError: `INVALID_ARGUMENT`: one has over 1,000 fields.
    """
    if len(body) <= _SMALL_BODY_BYTES:
        return
    left: list[Any] = [fields]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            if len(each) > _MAX_FIELDS:
                raise errors.invalid("body", f"an object in it has over {_MAX_FIELDS} fields")
            left.extend(value for value in each.values() if isinstance(value, dict | list))
        else:
            left.extend(value for value in each if isinstance(value, dict | list))


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise errors.invalid("messages", "must be a list with at least one message")
    if len(messages) > MAX_MESSAGES:
        raise errors.invalid("messages", f"must be at most {MAX_MESSAGES}")
    media = 0
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise errors.invalid(f"messages[{index}]", "must be an object")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise errors.invalid(f"messages[{index}].role", "must be a role")
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            raise errors.invalid(f"messages[{index}].content", "must be a text or a list of parts")
        if isinstance(content, list):
            media += _check_parts(content, index)
    if media > _MAX_MEDIA:
        raise errors.invalid("messages", f"may hold at most {_MAX_MEDIA} pictures and sounds")


def _check_parts(parts: list[Any], index: int) -> int:
    """Checks the parts of a message; returns how many are neither text nor refusal."""
    media = 0
    for place, part in enumerate(parts):
        # vLLM takes texts as they are, and parts without a type.
        if not isinstance(part, dict):
            continue
        kind = part.get("type")
        if kind not in _WORDS:
            media += 1
        elif not isinstance(part.get(kind), str):
            raise errors.invalid(f"messages[{index}].content[{place}]", f"needs a text as `{kind}`")
    return media


def _check_prompt(prompt: object) -> None:
    if not isinstance(prompt, str | list) or prompt == []:
        raise errors.invalid("prompt", "must be a text or a list that is not empty")
    if isinstance(prompt, list) and len(prompt) > _MAX_PROMPTS and not isinstance(prompt[0], int):
        raise errors.invalid("prompt", f"must be at most {_MAX_PROMPTS} texts")


def with_fields(request: OpenAIRequest, changes: dict[str, Any]) -> bytes:
    """Returns the request's JSON for the engine, with fields set.

    It names the model that answers, and has none of the mesh's own fields. The caller's bytes stay
    as they are where that can be: fields that are not there yet are put in front of them.
    """
    fields = request.fields
    if request.model != fields["model"]:
        changes = {"model": request.model, **changes}
    is_extended = not extensions.NAMES.isdisjoint(fields)
    if not changes and not is_extended:
        return request.body
    if is_extended or changes.keys() & fields.keys():
        kept = {k: v for k, v in fields.items() if k not in extensions.NAMES}
        return written({**kept, **changes})
    start = request.body.index(b"{") + 1
    return orjson.dumps(changes)[:-1] + b"," + request.body[start:]
