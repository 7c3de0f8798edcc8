"""Packs what the script is asked, and reads what it answers. `limiter.lua` says what is what."""

import functools
import hashlib
import struct
from asyncio import Future
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import hiredis
import orjson

from services.auth.limiting.contract import (
    LIMIT_NAMES,
    MAX_COUNT,
    TOKENS_PER_DAY,
    USD_PER_MONTH,
    Alert,
    Period,
    Refusal,
    Room,
    ScopeLimits,
    Total,
    Verdict,
    Wanted,
)

SCRIPT = (Path(__file__).parent / "limiter.lua").read_bytes()
_SHA = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()
_CALL = b"*4\r\n$7\r\nEVALSHA\r\n$40\r\n" + _SHA + b"\r\n$1\r\n0\r\n$%d\r\n%b\r\n"

ADMIT, CHARGE, RELEASE, SETTLE, TOTAL, STATE, HEARTBEAT, FAREWELL = range(1, 9)
ADMITTED, REFUSED, MISSING, REPEATED = range(4)

# Where a result's counters begin, and how many each scope has.
FIRST, EACH = 4, 5

LIMIT_OF = {Period.DAY.value: TOKENS_PER_DAY, Period.MONTH.value: USD_PER_MONTH}

_CACHED_ROWS = 65536


class Admission:
    """A call that is asked for.

    Attributes:
        second: When it was let in, by Redis' clock or, without Redis, by this machine's.
        tried: Whether missing totals were asked for already.
    """

    __slots__ = ("future", "request_id", "scopes", "second", "tokens", "tried", "usd_nano")

    def __init__(
        self,
        request_id: str,
        scopes: Sequence[ScopeLimits],
        tokens: int,
        usd_nano: int,
        future: "Future[Verdict]",
    ) -> None:
        self.request_id = request_id
        self.scopes = scopes
        self.tokens = min(tokens, MAX_COUNT)
        self.usd_nano = min(usd_nano, MAX_COUNT)
        self.future = future
        self.second = 0
        self.tried = False

    def charge(self) -> "Charge":
        """Returns what tells Redis of it once it was let in without it."""
        return Charge(self.request_id, self.scopes, self.tokens, self.usd_nano, self.second)


class Charge:
    """A call that was let in without Redis, or that Redis may have forgotten."""

    __slots__ = ("request_id", "scopes", "second", "tokens", "usd_nano")

    def __init__(
        self,
        request_id: str,
        scopes: Sequence[ScopeLimits],
        tokens: int,
        usd_nano: int,
        second: int,
    ) -> None:
        self.request_id = request_id
        self.scopes = scopes
        self.tokens = tokens
        self.usd_nano = usd_nano
        self.second = second


class Plain:
    """An operation that names no scope, as the script takes it."""

    __slots__ = ("op", "second")

    def __init__(self, op: list[Any], second: int) -> None:
        self.op = op
        self.second = second


Operation = Admission | Charge | Plain


@functools.lru_cache(_CACHED_ROWS)
def row(limits: ScopeLimits) -> orjson.Fragment:
    """Returns the limits of a scope as the script takes them."""
    values = [-1 if value is None else min(value, MAX_COUNT) for value in limits[1:6]]
    return orjson.Fragment(orjson.dumps([limits.scope, *values, limits.alert_percents]))


def request(
    run: str, at: tuple[int, int] | None, hold_s: int, operations: Sequence[Operation]
) -> bytes:
    """Returns the script's argument for operations, at most some hundred."""
    places: dict[str, int] = {}
    rows: list[orjson.Fragment] = []
    ops: list[list[Any]] = []
    for operation in operations:
        if isinstance(operation, Plain):
            ops.append(operation.op)
            continue
        named = []
        for limits in operation.scopes:
            place = places.get(limits.scope)
            if place is None:
                rows.append(row(limits))
                place = places[limits.scope] = len(rows)
            named.append(place)
        if isinstance(operation, Admission):
            ops.append([1, operation.request_id, operation.tokens, operation.usd_nano, named])
        else:
            args = operation.request_id, operation.tokens, operation.usd_nano, named
            ops.append([2, *args, operation.second])
    return orjson.dumps([run, at or False, hold_s, rows, ops])


def state_request(run: str, at: tuple[int, int] | None, hold_s: int, limits: ScopeLimits) -> bytes:
    """Returns the script's argument that asks for a scope's state."""
    return orjson.dumps([run, at or False, hold_s, [row(limits)], [[STATE, 1]]])


def packed(argument: bytes) -> bytes:
    """Returns the command that runs the script, which Redis has by its hash."""
    return _CALL % (len(argument), argument)


def packed_with_script(argument: bytes) -> bytes:
    """Returns the same with the script itself, for a Redis that does not have it."""
    return b"*4\r\n$4\r\nEVAL\r\n$%d\r\n%b\r\n$1\r\n0\r\n$%d\r\n%b\r\n" % (
        len(SCRIPT),
        SCRIPT,
        len(argument),
        argument,
    )


class Reply(NamedTuple):
    """What the script answers.

    Attributes:
        second: Redis' clock, Unix seconds.
        micros: Its microseconds.
        results: One for each operation: its kind, and numbers or, where totals are missing and of
            heartbeats, texts.
        alerts: Those that were passed: operation from 1, scope, period, percentage, date.
    """

    second: int
    micros: int
    results: Sequence[Sequence[Any]]
    alerts: Sequence[tuple[int, bytes, bytes, int, bytes]]


def read(raw: Any) -> Reply:
    """Reads the script's answer."""
    texts: list[bytes] = []
    if isinstance(raw, list):
        raw, *texts = raw
    numbers = struct.unpack(f"<{len(raw) // 8}q", raw)
    results: list[Sequence[Any]] = []
    at, taken = 2, 0
    while at < len(numbers):
        length = numbers[at]
        at += 1
        if length >= 0:
            results.append(numbers[at : at + length])
            at += length
        else:
            results.append((numbers[at], *texts[taken : taken - length]))
            at += 1
            taken -= length
    alerts = [
        (int(texts[i]), texts[i + 1], texts[i + 2], int(texts[i + 3]), texts[i + 4])
        for i in range(taken, len(texts), 5)
    ]
    return Reply(numbers[0], numbers[1], results, alerts)


def is_unknown_script(reply: Any) -> bool:
    """Whether Redis did nothing because it does not have the script."""
    # The first word of a refusal is its code.
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT ")


def total_op(total: Total, limits: ScopeLimits | None) -> list[Any]:
    """Returns the operation that takes in a total."""
    is_day = total.period is Period.DAY
    limit = None if limits is None else limits.tokens_per_day if is_day else limits.usd_per_month
    return [
        TOTAL,
        total.period.value,
        total.scope,
        total.start_date,
        min(total.tokens if is_day else total.usd_nano, MAX_COUNT),
        total.version,
        -1 if limit is None else limit,
        () if limits is None else limits.alert_percents,
    ]


def wanted(result: Sequence[Any]) -> list[Wanted]:
    """Returns the totals that a result of the kind `MISSING` misses."""
    return [
        Wanted(result[i + 1].decode(), Period(result[i].decode()), result[i + 2].decode())
        for i in range(1, len(result), 3)
    ]


def alert(found: Sequence[Any]) -> Alert:
    """Returns an alert of an answer."""
    _, scope, period, percent, date = found
    return Alert(scope.decode(), LIMIT_OF[period.decode()], percent, date.decode())


def verdict(
    result: Sequence[int], scopes: Sequence[ScopeLimits], micros: int, alerts: tuple[Alert, ...]
) -> Verdict:
    """Returns the verdict of a result of any kind but `MISSING`."""
    requests_left = tokens_left = MAX_COUNT
    requests_limit = tokens_limit = -1
    at = FIRST
    holds_place = False
    for limits in scopes:
        if limits[3] is not None:
            holds_place = True
        if (limit := limits[1]) is not None and limit - result[at] < requests_left:
            requests_limit, requests_left = limit, limit - result[at]
        if (limit := limits[2]) is not None and limit - result[at + 1] < tokens_left:
            tokens_limit, tokens_left = limit, limit - result[at + 1]
        at += EACH
    # What is charged now leaves the minute when the second of now has left it.
    reset_s = 60.0 - micros / 1e6
    requests = tokens = None
    if requests_limit >= 0:
        requests = Room(requests_limit, max(0, requests_left), reset_s)
    if tokens_limit >= 0:
        tokens = Room(tokens_limit, max(0, tokens_left), reset_s)
    if result[0] != REFUSED:
        return Verdict(True, None, requests, tokens, alerts, holds_place)
    place, kind, wait_ms = result[1] - 1, result[2], result[3]
    limits = scopes[place]
    refusal = Refusal(
        limits.scope,
        LIMIT_NAMES[kind - 1],
        None if wait_ms < 0 else wait_ms / 1000,
        cast(int, limits[kind]),
        result[FIRST + EACH * place + kind - 1],
    )
    return Verdict(False, refusal, requests, tokens, alerts)
