"""Passes on who calls, so that limits, guardrails and the ledger hold for what is done for them."""

from collections.abc import Iterable
from typing import NamedTuple

from services.kit import headers

Pairs = tuple[tuple[str, str], ...]

_DEBUG = "x-debug-mode"

_PASSED = frozenset(
    {
        headers.REQUEST_ID,
        headers.KEY_ID,
        headers.TENANT,
        headers.PROJECT,
        headers.ROLE,
        headers.MODEL,
        headers.ALLOWED_MODELS,
        headers.GUARDRAILS,
        headers.CACHING,
        headers.RESERVED,
        headers.AUDIT_BODY,
        _DEBUG,
    }
)
"""What auth, Envoy and the caller said of a call, and the node and routing act on."""

DEFAULT_PROJECT = "default"
"""The project of keys that have no other."""


class Scope(NamedTuple):
    """Whose something is.

    Args:
        tenant: The tenant.
        project: The project of the key.
    """

    tenant: str
    project: str


def scope_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> Scope:
    """Returns whose a call is. Auth leaves out the project that is `default`."""
    said = dict(metadata or ())
    return Scope(
        str(said.get(headers.TENANT, "")), str(said.get(headers.PROJECT) or DEFAULT_PROJECT)
    )


def passed_on(metadata: Iterable[tuple[str, str | bytes]] | None) -> Pairs:
    """Returns the metadata with which the caller's call goes on to a node."""
    return tuple(
        (key, value) for key, value in metadata or () if key in _PASSED and isinstance(value, str)
    )
