"""The guardrails of a key, made ready once: a chain of plugins, in the order of the contract.

A plugin is one file with one class, whose `check` refuses a prompt or changes its texts.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import re2

from services.kit.guardrails import header
from services.kit.guardrails.blocked import Blocked
from services.kit.guardrails.length import Length
from services.kit.guardrails.prompt import Prompt
from services.kit.guardrails.redact import Redact

# A chain holds at most 20 patterns of at most half a megabyte; most take some kilobytes.
_CACHED = 128


class Plugin(Protocol):
    """One guardrail."""

    def check(self, prompt: Prompt) -> None:
        """Passes a prompt, with other texts where it replaces what must not go on.

        Raises:
            MeshError: The prompt is refused.
        """


@lru_cache(_CACHED)
def chain_of(text: str) -> Sequence[Plugin]:
    """Returns the plugins that the header `x-mesh-guardrails` asks for.

    Raises:
        UnknownGuardrailsError: It asks for what this version does not know, or cannot be read.
    """
    wanted = header.read(text)
    plugins: list[Plugin] = []
    if wanted.HasField("max_prompt_chars"):
        plugins.append(Length(wanted.max_prompt_chars))
    try:
        if wanted.blocked_patterns:
            plugins.append(Blocked(wanted.blocked_patterns))
        if wanted.redact:
            plugins.append(Redact(wanted.redact))
    except (KeyError, re2.error) as error:
        raise header.UnknownGuardrailsError(str(error)) from None
    return plugins
