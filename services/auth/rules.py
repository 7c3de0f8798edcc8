"""What a key is bound to: models and networks."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from services.auth import errors
from services.kit.globs import ModelGlobs

_MAX_GLOB_CHARS = 4000
"""Bounds the header by which routing is told of the patterns."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a key is bound to, and what people note of it, as it is stored.

    Attributes:
        allowed_models: Patterns; empty for all models.
        denied_models: Patterns that win over the allowed ones.
        networks: Address prefixes from which the key may be used; empty for all.
        cors_origins: Kept for web pages; not enforced.
        labels: Notes.
    """

    allowed_models: tuple[str, ...] = ()
    denied_models: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


NONE = Rules()
"""The rules of a key that is bound to nothing."""


class Bounds:
    """The rules that a decision looks at, made ready once for all keys that share them.

    Attributes:
        models: Which models; None for all.
    """

    __slots__ = ("_networks", "models")

    def __init__(
        self, allowed: tuple[str, ...], denied: tuple[str, ...], networks: tuple[str, ...]
    ) -> None:
        self.models = ModelGlobs(allowed, denied) if allowed or denied else None
        # Host bits are let go: `10.1.2.3/8` is what people write for `10.0.0.0/8`.
        self._networks = [ipaddress.ip_network(each, strict=False) for each in networks]

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
    if not (rules.allowed_models or rules.denied_models or rules.networks):
        return None
    return _bounds(rules.allowed_models, rules.denied_models, rules.networks)


def check(rules: Rules) -> None:
    """Checks what single fields cannot tell.

    Raises:
        MeshError: `INVALID_ARGUMENT`.
    """
    if len(ModelGlobs(rules.allowed_models, rules.denied_models).text) > _MAX_GLOB_CHARS:
        raise errors.too_many_patterns(_MAX_GLOB_CHARS)


_bounds = lru_cache(4096)(Bounds)
