"""Which models a key may use, as patterns: `*` stands for any characters, `?` for one."""

import fnmatch
import re
from collections.abc import Sequence
from functools import lru_cache

_DENIED = "!"
_NOTHING = re.compile(r"(?!)")


class ModelGlobs:
    """Patterns of allowed and of denied models; upper and lower case differ.

    Args:
        allowed: Patterns of the models that may be used; empty for all.
        denied: Patterns of those that may not, whatever is allowed.
    """

    __slots__ = ("_allowed", "_denied", "text")

    def __init__(self, allowed: Sequence[str], denied: Sequence[str]) -> None:
        self.text = ",".join([*allowed, *(_DENIED + pattern for pattern in denied)])
        self._allowed = _any_of(allowed or ("*",))
        self._denied = _any_of(denied)

    def allow(self, model: str) -> bool:
        """Says whether a model may be used."""
        return self._allowed.match(model) is not None and self._denied.match(model) is None


@lru_cache(4096)
def read(text: str) -> ModelGlobs:
    """Returns what `ModelGlobs.text` was written from: `a*,b,!ac` allows `b` and `a…`, not `ac`."""
    patterns = text.split(",")
    return ModelGlobs(
        [pattern for pattern in patterns if pattern and not pattern.startswith(_DENIED)],
        [pattern.removeprefix(_DENIED) for pattern in patterns if pattern.startswith(_DENIED)],
    )


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    if not patterns:
        return _NOTHING
    # Brackets are no sets here. What `fnmatch` makes of stars does not backtrack, so that no
    # pattern makes a name expensive.
    quoted = (pattern.replace("[", "[[]") for pattern in patterns)
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in quoted))
