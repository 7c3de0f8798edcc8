"""Why an answer ended, and what it took, in Anthropic's words."""

from collections.abc import Mapping
from typing import Any

from services.inference.engines.dialect import Tokens

_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
# Where vLLM and SGLang say which text it was; both name tokens by number in the same place.
_MATCHES = ("stop_reason", "matched_stop")


def stop_of(
    choice: Mapping[str, Any], stops: frozenset[str], *, calls_tools: bool, refuses: bool
) -> tuple[str, str | None]:
    """Returns `stop_reason` and `stop_sequence`.

    An engine that does not say which of the caller's texts it met says no more than `stop`, and so
    `end_turn`.

    Args:
        choice: The answer with its finish reason.
        stops: The caller's texts.
        calls_tools: Whether the answer has calls; some engines say `stop` after them.
        refuses: Whether the model said that it will not answer.
    """
    reason = _REASONS.get(choice["finish_reason"], "end_turn")
    if reason != "end_turn":
        return reason, None
    if refuses:
        return "refusal", None
    for name in _MATCHES:
        met = choice.get(name)
        if isinstance(met, str) and met in stops:
            return "stop_sequence", met
    return ("tool_use" if calls_tools else reason), None


def usage_of(tokens: Tokens | None) -> dict[str, Any]:
    """Returns Anthropic's usage, whose `input_tokens` are those that no cache held.

    A count that the engine does not give is null.
    """
    if tokens is None:
        tokens = Tokens()
    fresh, cached = tokens.prompt, tokens.cached
    if fresh is not None and cached is not None:
        cached = min(cached, fresh)
        fresh -= cached
    usage: dict[str, Any] = {"input_tokens": fresh, "output_tokens": tokens.completion}
    if cached is not None:
        usage["cache_read_input_tokens"] = cached
    return usage
