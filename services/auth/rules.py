"""What a key is bound to: models, networks and web pages."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from services.auth import errors
from services.kit.globs import ModelGlobs
from services.kit.guardrails import header, patterns

_MAX_GLOB_CHARS = 4000
"""Bounds the header by which routing is told of the patterns."""

_MAX_GUARDRAILS_CHARS = 8192
"""Bounds the header by which nodes are told of the guardrails: base64, 6 KiB of bytes."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a key is bound to, and what people note of it, as it is stored.

    Attributes:
        allowed_models: Patterns; empty for all models.
        denied_models: Patterns that win over the allowed ones.
        networks: Address prefixes from which the key may be used; empty for all.
        cors_origins: Origins of the web pages that may use the key; empty for all.
        labels: Notes.
        guardrails: What prompts are checked for, as the header `x-mesh-guardrails` has it; empty
            for nothing.
        caching: Whether earlier answers are given, as the header `x-mesh-caching` has it; empty
            where the key does not say.
    """

    allowed_models: tuple[str, ...] = ()
    denied_models: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    guardrails: str = ""
    caching: str = ""


NONE = Rules()
"""The rules of a key that is bound to nothing."""


class Bounds:
    """The rules that a decision looks at, made ready once for all keys that share them.

    Attributes:
        models: Which models; None for all.
        guardrails: What prompts are checked for, as nodes are told; empty for nothing.
        caching: Whether earlier answers are given, as nodes are told; empty for not said.
    """

    __slots__ = ("_networks", "_origins", "caching", "guardrails", "models")

    def __init__(
        self,
        allowed: tuple[str, ...],
        denied: tuple[str, ...],
        networks: tuple[str, ...],
        origins: tuple[str, ...] = (),
        guardrails: str = "",
        caching: str = "",
    ) -> None:
        self.guardrails = guardrails
        self.caching = caching
        self.models = ModelGlobs(allowed, denied) if allowed or denied else None
        # Host bits are let go: `10.1.2.3/8` is what people write for `10.0.0.0/8`.
        self._networks = [ipaddress.ip_network(each, strict=False) for each in networks]

        # Browsers write schemes and hosts in lower case.
        self._origins = frozenset(each.lower() for each in origins)

    def admit_origin(self, origin: str | None) -> bool:
        """Says whether a web page of this origin may use the key; None is no web page's call."""
        return not self._origins or origin is None or origin.lower() in self._origins

    def admit(self, address: str) -> bool:
        """Says whether a call may come from an address; from one that is unknown, it may not."""
        if not self._networks:
            return True
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in network for network in self._networks)


def bounds_of(rules: Rules) -> Bounds | None:
    """Returns the bounds of a key; None for a key that has none, as most."""
    bound = (
        rules.allowed_models,
        rules.denied_models,
        rules.networks,
        rules.cors_origins,
        rules.guardrails,
        rules.caching,
    )
    return _bounds(*bound) if any(bound) else None


def check(rules: Rules) -> None:
    """Checks what single fields cannot tell.

    Raises:
        MeshError: `INVALID_ARGUMENT`.
    """
    if len(ModelGlobs(rules.allowed_models, rules.denied_models).text) > _MAX_GLOB_CHARS:
        raise errors.too_many_patterns(_MAX_GLOB_CHARS)
    if rules.guardrails:
        _check_guardrails(rules.guardrails)


def _check_guardrails(text: str) -> None:
    try:
        patterns.check(header.read(text).blocked_patterns)
    except patterns.PatternError as error:
        raise errors.invalid_pattern(error.index, error.message) from None
    if len(text) > _MAX_GUARDRAILS_CHARS:
        raise errors.invalid_pattern(None, "take too many bytes in UTF-8")


_bounds = lru_cache(4096)(Bounds)
