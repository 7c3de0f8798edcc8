"""Patterns that refuse prompts, in RE2's syntax: whatever they say, their time is linear.

Linear is not yet cheap: RE2 may fall back to an engine whose time is the length of the text times
the size of the pattern's program, so that the size is bounded too.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import re2

MAX_CHARS = 2000
"""The most characters of all patterns of a key."""

MAX_PROGRAM = 5000
"""The most instructions of all patterns of a key. A word has about one for each byte."""

_MAX_MEMORY_BYTES = 1 << 19
_CACHED = 512


class PatternError(Exception):
    """A pattern cannot be used.

    Args:
        index: Its place among the patterns; None where all together are at fault.
        message: What is wrong with it.
    """

    def __init__(self, index: int | None, message: str) -> None:
        super().__init__(message)
        self.index = index
        self.message = message


def check(patterns: Sequence[str]) -> None:
    """Checks the patterns of a key.

    Raises:
        PatternError: One does not compile or finds something in every text, or all together are
            too long or too large.
    """
    if sum(map(len, patterns)) > MAX_CHARS:
        raise PatternError(None, f"are longer than {MAX_CHARS} characters in all")
    size = 0
    for index, pattern in enumerate(patterns):
        try:
            compiled = compile_pattern(pattern)
        except re2.error as error:
            said = error.args[0] if error.args else b""
            text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
            raise PatternError(index, f"is not in RE2's syntax: {text}") from None
        if compiled.search("") is not None:
            raise PatternError(index, "finds something in every text")
        size += compiled.programsize
    if size > MAX_PROGRAM:
        raise PatternError(
            None, f"are too large: {size} instructions in all, and {MAX_PROGRAM} may be"
        )


@lru_cache(_CACHED)
def compile_pattern(pattern: str) -> Any:
    """Returns RE2's object for a pattern.

    Raises:
        re2.error: It does not compile.
    """
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = _MAX_MEMORY_BYTES
    return re2.compile(pattern, options)
