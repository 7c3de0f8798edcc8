"""Which web pages browsers let call the front door, as Envoy is told."""

import re
from collections.abc import Mapping, Sequence

SETTING = "INFERMESH_CORS_ORIGINS"
"""The environment's word on it: origins with commas between them, or `*` for all."""

# The same grammar as `KeyRules.cors_origins`; envoy/render.sh has it for containers.
_ORIGIN = re.compile(r"\*|https?://[A-Za-z0-9.:\[\]-]{1,190}")


def origins(said: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the origins that may call: those said, else those in the environment.

    Raises:
        ValueError: One of them is no origin; the message names it.
    """
    wanted = said or environment.get(SETTING, "").split(",")
    found = tuple(dict.fromkeys(each.strip() for each in wanted if each.strip()))
    for each in found:
        if _ORIGIN.fullmatch(each) is None:
            raise ValueError(f"{each!r} is no origin such as https://app.example.com, nor `*`")
    return found


def matchers(found: Sequence[str]) -> str:
    """Returns Envoy's matchers of the origins as they stand in a YAML list."""
    return ", ".join(f'{{exact: "{each}"}}' for each in found)
