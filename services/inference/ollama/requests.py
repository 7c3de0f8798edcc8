"""Reads Ollama's requests and makes OpenAI's of them. Nothing is dropped without a word."""

from dataclasses import dataclass
from typing import Any

import orjson

from services.inference import errors, extensions
from services.inference.ollama import messages
from services.inference.requests import Kind, OpenAIRequest, check, written

_LATEST = ":latest"
_COMMON = extensions.NAMES | {
    *("model", "stream", "format", "options", "keep_alive", "think", "logprobs", "top_logprobs"),
    # Prompts that are too long are refused, as by every engine here, and never cut.
    *("truncate", "shift"),
}
_FIELDS = {
    "chat": _COMMON | {"messages", "tools"},
    "generate": _COMMON | {"prompt", "suffix", "images", "system", "template", "context", "raw"},
}
_WHY = {
    "template": "the model's own template is used; with `raw` none is.",
    "context": "the mesh keeps no conversations: send them to /api/chat.",
    "width": "the mesh makes no pictures.",
    "height": "the mesh makes no pictures.",
    "steps": "the mesh makes no pictures.",
}
_NO_RAW = ("system", "images", "format", "think", "logprobs")
_LEVELS = ("low", "medium", "high", "max")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was read, as far as it does not depend on the engine.

    Attributes:
        model: The model that it names, without the tag `:latest`.
        kind: What it becomes.
        fields: OpenAI's fields, without the model and the options.
        options: Its `options` as they are.
        think: What it says of thinking: true, false, a level, or None.
        is_stream: Whether the caller wants lines as they come.
        only_loads: Whether it asks for nothing but that the model is there.
        is_begun: Whether the last message is the assistant's, to be gone on with.
    """

    model: str
    kind: Kind
    fields: dict[str, Any]
    options: object
    think: bool | str | None
    is_stream: bool
    only_loads: bool = False
    is_begun: bool = False


def parse(path: str, body: bytes) -> Asked:
    """Reads a request.

    Args:
        path: `chat` or `generate`.
        body: Ollama's JSON.

    Raises:
        MeshError: `INVALID_JSON`; `INVALID_ARGUMENT` or `UNSUPPORTED` with the field at fault.
    """
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise errors.invalid_json(f"The body is not valid JSON: {error}") from None
    if not isinstance(said, dict):
        raise errors.invalid_json("The body is not a JSON object.")
    model = said.get("model")
    if not isinstance(model, str) or not model:
        raise errors.invalid("model", "must be the name of a model")
    stream = said.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise errors.invalid("stream", "must be true or false")
    _check_known(said, path)
    if not isinstance(said.get("raw"), bool | None):
        raise errors.invalid("raw", "must be true or false")
    is_raw = path == "generate" and bool(said.get("raw") or said.get("suffix"))
    fields: dict[str, Any] = {name: said[name] for name in extensions.NAMES & said.keys()}
    if is_raw:
        _add_raw(fields, said)
    elif path == "generate":
        _add_prompt(fields, said)
    else:
        fields["messages"] = messages.to_openai(said.get("messages") or [])
        if said.get("tools"):
            fields["tools"] = said["tools"]
    only_loads = not (fields.get("messages") or fields.get("prompt") or fields.get("suffix"))
    if only_loads and said.get("keep_alive") in (0, "0", "0s", "0m"):
        raise errors.unsupported(
            "keep_alive", "models leave a node's memory by `infermesh models unload` only."
        )
    _add_format(fields, said.get("format"))
    _add_logprobs(fields, said)
    return Asked(
        model=model.removesuffix(_LATEST),
        kind="completion" if is_raw else "chat",
        fields=fields,
        options=said.get("options"),
        think=_think(said.get("think")),
        is_stream=stream is not False,
        only_loads=only_loads,
        is_begun=_is_begun(fields.get("messages")),
    )


def finish(asked: Asked, more: dict[str, Any]) -> OpenAIRequest:
    """Returns OpenAI's request.

    Args:
        asked: What was read.
        more: The fields that depend on the engine: options and thinking.

    Raises:
        MeshError: As `services.inference.requests.check`.
    """
    fields: dict[str, Any] = {"model": asked.model, **asked.fields, **more}
    if asked.is_stream:
        fields["stream"] = True
    return check(asked.kind, written(fields), fields)


def _is_begun(chat: list[dict[str, Any]] | None) -> bool:
    if not chat:
        return False
    # Whoever has called tools waits for their answers.
    return chat[-1]["role"] == "assistant" and "tool_calls" not in chat[-1]


def _check_known(said: dict[str, Any], path: str) -> None:
    known = _FIELDS[path]
    for name, value in said.items():
        is_refused = name not in known or name in _WHY
        if is_refused and value is not None and value is not False and value not in ("", [], {}):
            why = _WHY.get(name, "is nothing that the mesh knows.")
            raise errors.unsupported(name[:60], why)


def _add_raw(fields: dict[str, Any], said: dict[str, Any]) -> None:
    for name in _NO_RAW:
        if said.get(name):
            raise errors.unsupported(name, "goes through the model's template, not with `raw`.")
    prompt = said.get("prompt") or ""
    if not isinstance(prompt, str):
        raise errors.invalid("prompt", "must be a text")
    fields["prompt"] = prompt
    suffix = said.get("suffix")
    if suffix:
        if not isinstance(suffix, str):
            raise errors.invalid("suffix", "must be a text")
        fields["suffix"] = suffix


def _add_prompt(fields: dict[str, Any], said: dict[str, Any]) -> None:
    content = messages.content(said.get("prompt"), said.get("images"), "")
    made: list[dict[str, Any]] = []
    fields["messages"] = made
    if not content:
        return
    system = said.get("system")
    if system:
        if not isinstance(system, str):
            raise errors.invalid("system", "must be a text")
        made.append({"role": "system", "content": system})
    made.append({"role": "user", "content": content})


def _add_format(fields: dict[str, Any], form: object) -> None:
    if form is None or form == "":
        return
    if form == "json":
        fields["response_format"] = {"type": "json_object"}
    elif isinstance(form, dict):
        described = {"name": "answer", "schema": form, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": described}
    else:
        raise errors.invalid("format", "must be json or a JSON schema")


def _add_logprobs(fields: dict[str, Any], said: dict[str, Any]) -> None:
    wanted, rivals = said.get("logprobs"), said.get("top_logprobs")
    if wanted is not None and not isinstance(wanted, bool):
        raise errors.invalid("logprobs", "must be true or false")
    if not wanted:
        if rivals:
            raise errors.invalid("top_logprobs", "needs `logprobs`")
        return
    fields["logprobs"] = True
    if rivals is not None:
        if isinstance(rivals, bool) or not isinstance(rivals, int) or not 0 <= rivals <= 20:
            raise errors.invalid("top_logprobs", "must be a number from 0 to 20")
        fields["top_logprobs"] = rivals


def _think(think: Any) -> bool | str | None:
    if think is None or isinstance(think, bool) or think in _LEVELS:
        return think  # type: ignore[no-any-return]
    if think == "":
        return None
    raise errors.invalid("think", f"must be true, false or one of {', '.join(_LEVELS)}")
