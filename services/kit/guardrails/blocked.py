"""Refuses prompts in which a pattern is found."""

from collections.abc import Sequence

from infermesh.errors.v1 import errors_pb2
from services.kit.errors import MeshError
from services.kit.guardrails.patterns import compile_pattern
from services.kit.guardrails.prompt import Prompt
from services.kit.guardrails.views import plain


class Blocked:
    """Looks for patterns in every text, as it stands and as people read it.

    Args:
        patterns: In RE2's syntax.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [compile_pattern(pattern) for pattern in patterns]

    def check(self, prompt: Prompt) -> None:
        """Raises `CONTENT_BLOCKED`, which names the field and the place of the pattern."""
        for text, param in zip(prompt.texts, prompt.params, strict=True):
            self._search(text, param)
        for text in prompt.names:
            self._search(text, None)
        for text in prompt.readings:
            self._search(text, None)

    def _search(self, text: str, param: str | None) -> None:
        for index, pattern in enumerate(self._patterns):
            if pattern.search(text) is not None:
                raise blocked(param, index)
        read = plain(text)
        if read is text:
            return
        for index, pattern in enumerate(self._patterns):
            if pattern.search(read) is not None:
                raise blocked(param, index)


def blocked(param: str | None, index: int | None = None) -> MeshError:
    """Returns the refusal.

    Args:
        param: The field that holds what is blocked.
        index: The place of the pattern among the key's; None where it is not a pattern.
    """
    return MeshError(
        errors_pb2.ERROR_REASON_CONTENT_BLOCKED,
        "The prompt holds what the API key's guardrails do not let pass.",
        param=param,
        metadata=None if index is None else {"pattern": str(index)},
    )
