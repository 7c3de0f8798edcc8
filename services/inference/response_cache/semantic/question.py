"""Which requests a near answer may answer, and what may differ in them: the last question."""

from dataclasses import replace
from typing import Any, NamedTuple

from services.inference.requests import OpenAIRequest
from services.inference.response_cache.key import Form, key_of
from services.kit.caller import Caller

MAX_CHARS = 1000
"""Of a question. The longer it is, the less a word of it moves its vector."""

# A request with any other field is out, known or not: it may want an answer of a certain form.
_HARMLESS = frozenset(
    {
        *("model", "messages", "stream", "stream_options"),
        *("temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "stop"),
        *("max_tokens", "max_completion_tokens"),
        *("frequency_penalty", "presence_penalty", "repeat_penalty", "repetition_penalty"),
        *("repeat_last_n", "reasoning_effort"),
        *("user", "safety_identifier", "prompt_cache_key", "metadata", "store", "service_tier"),
        *("preferred_framework", "fallback_models", "enable_caching", "optimization_level"),
        *("priority", "session_id"),
    }
)
# What asks for nothing where it says this.
_NEUTRAL: dict[str, object] = {
    "n": 1,
    "logprobs": False,
    "tools": [],
    "response_format": {"type": "text"},
}


class Question(NamedTuple):
    """What is asked.

    Args:
        rest: Stands for everything but the question, the tenant included: 20 bytes that are equal
            where all of it is.
        text: The question.
    """

    rest: bytes
    text: str


def question_of(
    caller: Caller, request: OpenAIRequest, model: str, form: Form, generation: int
) -> Question | None:
    """Returns the question of a request, or None where only the same request has the same answer.

    That is so for all but chats that end with a user's text of at most 1,000 characters and want
    one answer in plain text: no tools, images, log probabilities or structure.

    Args:
        caller: As `key_of` has it, like all that follow.
        request: …
        model: …
        form: …
        generation: …
    """
    fields = request.fields
    if request.kind != "chat" or any(
        value is not None and name not in _HARMLESS and not _is_neutral(name, value)
        for name, value in fields.items()
    ):
        return None
    *earlier, last = fields["messages"]
    text = _text_of(last.get("content"))
    if last["role"] != "user" or not text.strip() or len(text) > MAX_CHARS:
        return None
    messages = [*earlier, {**last, "content": None}]
    rest = replace(request, fields={**fields, "messages": messages})
    return Question(key_of(caller, rest, model, form, generation), text)


def _is_neutral(name: str, value: object) -> bool:
    return name in _NEUTRAL and value == _NEUTRAL[name]


def _text_of(content: Any) -> str:
    """Returns a message's text, in either of its forms; empty where there is more to it."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or len(content) != 1 or not isinstance(content[0], dict):
        return ""
    text = content[0].get("text")
    if content[0] != {"type": "text", "text": text} or not isinstance(text, str):
        return ""
    return text
