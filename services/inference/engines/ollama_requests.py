"""Makes Ollama's requests of OpenAI's.

A field that Ollama has no word for is refused unless it asks for nothing; fields that only name
the caller or the request are left out.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from services.inference import errors, extensions
from services.inference.requests import OpenAIRequest

# OpenAI's names and those of other engines, each with Ollama's.
_OPTIONS: Mapping[str, str] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "max_tokens": "num_predict",
    "max_completion_tokens": "num_predict",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repeat_penalty",
    "repetition_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
}
_KNOWN = extensions.NAMES | {
    *_OPTIONS,
    *("model", "messages", "prompt", "stream", "stream_options", "stop", "suffix"),
    *("tools", "tool_choice", "response_format", "reasoning_effort", "think"),
    *("logprobs", "top_logprobs", "n", "best_of"),
    # They name the caller or the request, and change nothing of the answer.
    *("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"),
    # Ollama may call several tools at once anyway; what it may not do is refused below.
    "parallel_tool_calls",
}
_EFFORTS: Mapping[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}
_ROLES = {"developer": "system"}


def chat(request: OpenAIRequest, *, has_logprobs: bool) -> dict[str, Any]:
    """Returns the body for `/api/chat`.

    Args:
        request: The request.
        has_logprobs: Whether this version of Ollama can tell probabilities.

    Raises:
        MeshError: `UNSUPPORTED` or `INVALID_ARGUMENT` with the field at fault.
    """
    fields = request.fields
    body = _common(request)
    names = _tool_names(fields["messages"])
    body["messages"] = [
        _message(index, message, names) for index, message in enumerate(fields["messages"])
    ]
    if fields.get("suffix"):
        raise errors.unsupported("suffix", "belongs to text completions.")
    if tools := _tools(fields):
        body["tools"] = tools
    if (form := _format(fields.get("response_format"))) is not None:
        body["format"] = form
    if (think := _think(fields)) is not None:
        body["think"] = think
    if fields.get("logprobs"):
        if not has_logprobs:
            raise errors.unsupported("logprobs", "this version of Ollama does not tell them.")
        body["logprobs"] = True
        if fields.get("top_logprobs"):
            body["top_logprobs"] = fields["top_logprobs"]
    return body


def generate(request: OpenAIRequest) -> dict[str, Any]:
    """Returns the body for `/api/generate`. Raises like `chat`."""
    fields = request.fields
    prompt = fields["prompt"]
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise errors.unsupported("prompt", "Ollama completes one text for each request.")
    for name in ("logprobs", "tools", "response_format"):
        if fields.get(name):
            raise errors.unsupported(name, "Ollama knows it with chats only.")
    body = _common(request)
    body["prompt"] = prompt
    if suffix := fields.get("suffix"):
        # The model's template says where the text goes.
        body["suffix"] = suffix
    else:
        body["raw"] = True
    return body


def _common(request: OpenAIRequest) -> dict[str, Any]:
    fields = request.fields
    for name in fields.keys() - _KNOWN:
        value = fields[name]
        # 0 asks for something: `keep_alive` puts the model away.
        if value is not None and value is not False and value not in ([], {}):
            raise errors.unsupported(name, "is nothing that Ollama knows.")
    if request.n > 1:
        raise errors.unsupported("n", "Ollama gives one answer for each request.")
    if isinstance(best_of := fields.get("best_of"), int) and best_of > 1:
        raise errors.unsupported("best_of", "Ollama makes one answer for each request.")
    if fields.get("parallel_tool_calls") is False and fields.get("tools"):
        raise errors.unsupported(
            "parallel_tool_calls", "Ollama does not promise one call at a time."
        )
    options = {
        theirs: fields[ours] for ours, theirs in _OPTIONS.items() if fields.get(ours) is not None
    }
    stop = fields.get("stop")
    if stop:
        options["stop"] = [stop] if isinstance(stop, str) else stop
    # A prompt that is too long is refused, as by every other engine, and not cut in silence.
    return {
        "model": request.model,
        "stream": True,
        "truncate": False,
        "shift": False,
        "options": options,
    }


def _message(index: int, message: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    role = message["role"]
    made: dict[str, Any] = {"role": _ROLES.get(role, role)}
    text, images = _content(index, message.get("content"))
    made["content"] = text
    if images:
        made["images"] = images
    if thinking := message.get("reasoning_content") or message.get("reasoning"):
        made["thinking"] = thinking
    if calls := message.get("tool_calls"):
        made["tool_calls"] = [_call(index, place, call) for place, call in enumerate(calls)]
    if role == "tool":
        call_id = message.get("tool_call_id")
        if name := message.get("name") or names.get(str(call_id)):
            made["tool_name"] = name
        if call_id:
            made["tool_call_id"] = call_id
    return made


def _content(index: int, content: object) -> tuple[str, list[str]]:
    if not isinstance(content, list):
        return (content if isinstance(content, str) else ""), []
    texts, images = [], []
    for place, part in enumerate(content):
        param = f"messages[{index}].content[{place}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            images.append(_image(param, part.get("image_url")))
        elif isinstance(kind, str) and kind != "text":
            raise errors.unsupported(param, f"Ollama takes no `{kind[:40]}`.")
        else:
            raise errors.invalid(param, "must be a part with a type")
    return "\n".join(texts), images


def _image(param: str, image: object) -> str:
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str):
        raise errors.invalid(param, "must have a url")
    if not url.startswith("data:"):
        raise errors.unsupported(param, "Ollama takes pictures as data URLs only.")
    head, found, data = url.partition(",")
    if not found or not head.endswith(";base64"):
        raise errors.invalid(param, "must be a data URL in base64")
    return data


def _call(index: int, place: int, call: object) -> dict[str, Any]:
    param = f"messages[{index}].tool_calls[{place}]"
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise errors.invalid(param, "must be a call of a function")
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            arguments = None
    if not isinstance(arguments, dict):
        raise errors.invalid(f"{param}.function.arguments", "must be a JSON object")
    made: dict[str, Any] = {"function": {"name": function.get("name"), "arguments": arguments}}
    if call.get("id"):
        made["id"] = call["id"]
    return made


def _tool_names(messages: list[dict[str, Any]]) -> dict[str, str]:
    """Returns which function each call in the conversation was of, by the call's id."""
    names: dict[str, str] = {}
    for message in messages:
        for call in message.get("tool_calls") or ():
            if isinstance(call, dict) and isinstance(function := call.get("function"), dict):
                names[str(call.get("id"))] = str(function.get("name") or "")
    return names


def _tools(fields: dict[str, Any]) -> list[Any]:
    tools = fields.get("tools")
    if not tools:
        return []
    if not isinstance(tools, list):
        raise errors.invalid("tools", "must be a list")
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise errors.unsupported(f"tools[{index}]", "Ollama calls functions only.")
    choice = fields.get("tool_choice")
    if choice == "none":
        return []
    if choice not in (None, "auto"):
        raise errors.unsupported("tool_choice", "with Ollama the model chooses.")
    return tools


def _format(response_format: object) -> object:
    if not isinstance(response_format, dict):
        return None
    kind = response_format.get("type")
    if kind == "json_object":
        return "json"
    if kind == "json_schema":
        described = response_format.get("json_schema")
        schema = described.get("schema") if isinstance(described, dict) else None
        if not isinstance(schema, dict):
            raise errors.invalid("response_format.json_schema.schema", "must be an object")
        return schema
    if kind not in (None, "text"):
        raise errors.unsupported("response_format", "Ollama keeps to JSON and JSON schemas only.")
    return None


def _think(fields: dict[str, Any]) -> object:
    if fields.get("think") is not None:
        return fields["think"]
    effort = fields.get("reasoning_effort")
    if effort is None:
        return None
    if effort not in _EFFORTS:
        raise errors.invalid("reasoning_effort", f"must be one of {', '.join(_EFFORTS)}")
    return _EFFORTS[effort]
