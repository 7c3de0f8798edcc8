"""The scopes that limits are set for, and the periods over which their usage is summed."""

import datetime as dt
import functools
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple

from infermesh.auth.v1 import limit_service_pb2

DAY = int(limit_service_pb2.LIMIT_PERIOD_DAY)
MONTH = int(limit_service_pb2.LIMIT_PERIOD_MONTH)

# The rules of `infermesh.auth.v1.LimitScope`: what they refuse can have no limit.
_SLUG = re.compile("[a-z0-9][a-z0-9_-]{0,62}")
_KEY_ID = re.compile("[A-Za-z0-9:._-]{1,64}")
_MODEL = re.compile("[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")

_ZERO = Decimal()


class Scope(NamedTuple):
    """A tenant, a tenant and a project, a key, or a key and a model. The rest is empty."""

    tenant: str
    project: str
    key_id: str
    model: str


class Span(NamedTuple):
    """A scope in a period."""

    period: int
    start: dt.date
    scope: Scope


class Total(NamedTuple):
    """What the ledger has of a span; also a change of that, which may be negative."""

    tokens: int
    cost: Decimal


class VersionedTotal(NamedTuple):
    """A total as it is committed. Version 0 is nothing."""

    tokens: int = 0
    cost: Decimal = _ZERO
    version: int = 0


class Use(NamedTuple):
    """Whose totals a request is in.

    Args:
        day: When it started (UTC).
        tenant: The caller's tenant.
        project: The caller's project.
        key_id: The caller's key.
        model: The model as the caller named it.
    """

    day: dt.date
    tenant: str
    project: str
    key_id: str
    model: str


@functools.lru_cache(4096)
def spans_of(use: Use) -> tuple[Span, ...]:
    """Returns the spans that a request is in: each of its scopes by day and by month."""
    scopes = []
    if _SLUG.fullmatch(use.tenant):
        scopes.append(Scope(use.tenant, "", "", ""))
        if _SLUG.fullmatch(use.project):
            scopes.append(Scope(use.tenant, use.project, "", ""))
    if _KEY_ID.fullmatch(use.key_id):
        scopes.append(Scope("", "", use.key_id, ""))
        if _MODEL.fullmatch(use.model):
            scopes.append(Scope("", "", use.key_id, use.model))
    periods = ((DAY, use.day), (MONTH, use.day.replace(day=1)))
    return tuple(Span(*period, scope) for period in periods for scope in scopes)


def total_changes(parts: Iterable[tuple[Use, int, Decimal]]) -> list[tuple[Span, Total]]:
    """Adds up changes of totals.

    Args:
        parts: What each request adds: tokens and US dollars; both negative for one that goes.

    Returns:
        Changes that are not 0, in the order in which all writers lock the rows of the totals.
    """
    by_use: dict[Use, tuple[int, Decimal]] = {}
    for use, tokens, cost in parts:
        known = by_use.get(use)
        by_use[use] = (tokens, cost) if known is None else (known[0] + tokens, known[1] + cost)
    changes: dict[Span, Total] = {}
    for use, (tokens, cost) in by_use.items():
        if tokens or cost:
            for span in spans_of(use):
                old = changes.get(span)
                changes[span] = (
                    Total(tokens, cost)
                    if old is None
                    else Total(old.tokens + tokens, old.cost + cost)
                )
    return sorted(item for item in changes.items() if item[1].tokens or item[1].cost)
