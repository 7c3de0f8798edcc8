"""Refuses prompts that are too long."""

from infermesh.errors.v1 import errors_pb2
from services.kit.errors import MeshError
from services.kit.guardrails.prompt import Prompt


class Length:
    """Bounds the characters of a prompt.

    Args:
        max_chars: The most characters of all texts together.
    """

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars

    def check(self, prompt: Prompt) -> None:
        """Raises `INPUT_TOO_LONG`."""
        chars = prompt.chars
        if chars <= self._max_chars:
            return
        raise MeshError(
            errors_pb2.ERROR_REASON_INPUT_TOO_LONG,
            f"The prompt has {chars} characters; the API key may send {self._max_chars}.",
            param=prompt.params[0].partition("[")[0] if prompt.params else None,
            metadata={"chars": str(chars), "max_chars": str(self._max_chars)},
        )
