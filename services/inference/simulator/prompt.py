"""What a request asks for: its prompt as tokens, and the limits of its answer.

A token is four characters of the rendered prompt. The rendering is a chat template of the usual
kind, so that a chat that goes on begins with what was said before.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from services.inference.simulator.answers import TOKEN_CHARACTERS

_MAX_PRIORITY = 1_000_000
_RARE = frozenset(("n", "logprobs", "response_format", "tool_choice", "priority"))


class RequestError(Exception):
    """A request that the engine refuses, in vLLM's terms.

    Attributes:
        status: The HTTP status.
        kind: The error's `type`.
        param: The field that is wrong; empty where none is.
    """

    def __init__(
        self, message: str, *, status: int = 400, kind: str = "BadRequestError", param: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.param = param


@dataclass(slots=True)
class Ask:
    """A request for an answer.

    Attributes:
        text: The rendered prompt.
        prompt_tokens: Its tokens.
        answer_tokens: The tokens to answer with.
        priority: Lower goes first, where the engine looks at it.
    """

    text: str
    prompt_tokens: int
    answer_tokens: int
    is_stream: bool
    wants_usage: bool
    priority: int


def tokens_of(text: str) -> int:
    """Returns how many tokens a text has, the last one perhaps not full."""
    return -(-len(text) // TOKEN_CHARACTERS)


def chat_text(request: dict[str, Any]) -> str:
    """Renders messages, after the tools where there are some.

    Raises:
        RequestError: The messages have another form.
    """
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list that is not empty", param="messages")
    pieces = []
    if tools := request.get("tools"):
        pieces.append(f"<|tools|>{orjson.dumps(tools).decode()}")
    for message in messages:
        if not isinstance(message, dict):
            raise RequestError("a message must be an object", param="messages")
        pieces.append(f"<|{message.get('role')}|>{_said(message)}")
    pieces.append("<|assistant|>")
    return "".join(pieces)


def _said(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        said = content
    elif content is None:
        said = ""
    elif isinstance(content, list) and all(isinstance(part, dict) for part in content):
        # Pictures and sounds are not simulated; vLLM's text models refuse them too.
        if any(part.get("type") != "text" for part in content):
            raise RequestError("the model takes text only", param="messages")
        said = "".join(str(part.get("text")) for part in content)
    else:
        raise RequestError("content must be a string or a list of parts", param="messages")
    if calls := message.get("tool_calls"):
        said += orjson.dumps(calls).decode()
    return said


def completion_text(request: dict[str, Any]) -> str:
    """Returns a completion's prompt.

    Raises:
        RequestError: It is not one text.
    """
    prompt = request.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise RequestError("prompt must be one text that is not empty", param="prompt")
    return prompt


def ask_of(request: dict[str, Any], text: str, *, answer_tokens: int, longest: int) -> Ask:
    """Reads what a chat and a completion have in common.

    Args:
        request: The body.
        text: The rendered prompt.
        answer_tokens: The tokens of an answer that nobody limits.
        longest: The most tokens of prompt and answer together.

    Raises:
        RequestError: A field has a value that the engine cannot do.
    """
    # Most requests have none of these, and finding that out at once is cheap.
    priority = 0 if _RARE.isdisjoint(request) else _check_rare(request)
    is_new = request.get("max_completion_tokens") is not None
    name = "max_completion_tokens" if is_new else "max_tokens"
    limit = request.get(name)
    if limit is not None and not (_is_int(limit) and limit >= 1):
        raise RequestError(f"{name} must be at least 1", param=name)
    prompt = tokens_of(text)
    if prompt + (limit or 1) > longest:
        raise RequestError(
            f"This model's maximum context length is {longest} tokens. The request has {prompt} "
            f"in its prompt and asks for {limit or 1}."
        )
    options = request.get("stream_options")
    return Ask(
        text=text,
        prompt_tokens=prompt,
        answer_tokens=min(answer_tokens, limit or answer_tokens, longest - prompt),
        is_stream=bool(request.get("stream")),
        wants_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        priority=priority,
    )


def _check_rare(request: dict[str, Any]) -> int:
    """Checks the fields that few requests have, and returns the priority."""
    if request.get("n") not in (None, 1):
        raise RequestError("n must be 1", param="n")
    if request.get("logprobs"):
        raise RequestError("logprobs are not simulated", param="logprobs")
    shape = request.get("response_format")
    if isinstance(shape, dict) and shape.get("type") != "text":
        raise RequestError("structured output is not simulated", param="response_format")
    if request.get("tool_choice") not in (None, "none", "auto"):
        raise RequestError("calls of tools are not simulated", param="tool_choice")
    priority = request.get("priority", 0)
    if not _is_int(priority) or abs(priority) > _MAX_PRIORITY:
        raise RequestError("priority must be an integer", param="priority")
    return int(priority)


def chain(seed: int, text: str, block_tokens: int, *, after: int = 0) -> list[int]:
    """Returns the hashes of a text's full blocks, each over all that stands before it.

    Args:
        seed: The hash of the block before the first, or of whatever else sets texts apart.
        text: The text.
        block_tokens: Tokens of a block.
        after: How many blocks are passed over.
    """
    step = block_tokens * TOKEN_CHARACTERS
    hashes = []
    for end in range((after + 1) * step, len(text) + 1, step):
        seed = hash((seed, text[end - step : end]))
        hashes.append(seed)
    return hashes


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
