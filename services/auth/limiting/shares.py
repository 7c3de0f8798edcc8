"""Limits without Redis: each replica lets in its share of what was left when Redis went away.

- What was left of a scope is what its last answer from Redis said. After a minute without Redis all
  of a limit by the minute, and all places of calls at the same time, count as left, for what used
  them has gone from the minute; the sums of the ledger stay as they were.
- Of what was left, a replica has one n-th, n being the replicas whose heartbeats were last seen.
  The parts are whole numbers and sum to what was left: the first replicas by name have one more
  where it does not divide. A limit of 2 that three replicas share is 1, 1 and 0.
- A limit by day or month of which this replica has heard no sum in the period is not known, and
  unknown is not 0: the call is refused as one that nobody can decide. A period that begins without
  Redis begins with 0.
- Reservations are not settled here. They count as used until Redis has been told of them.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from services.auth.limiting.contract import (
    CONCURRENT_REQUESTS,
    LIMIT_NAMES,
    Refusal,
    Room,
    ScopeLimits,
    Verdict,
)
from services.auth.limiting.wire import EACH, FIRST, Admission

_WINDOW_S = 60
_RETRY_S = 5.0
_RETRY_PLACE_S = 1.0

MAX_SCOPES = 50_000
"""How many scopes are remembered, some 500 bytes each."""

_NOTHING_KNOWN = (-1,) * EACH

Period = tuple[int, int]


class _Spent:
    """What was let in here of one scope since Redis last told of it."""

    __slots__ = ("calls", "day", "flying", "month", "requests", "tokens")

    def __init__(self) -> None:
        self.calls: deque[tuple[int, int]] = deque()  # second and tokens, of a minute
        self.requests = 0
        self.tokens = 0
        self.flying = 0
        self.day: list[int] = [0, 0]  # the day's number and its tokens
        self.month: list[int] = [0, 0]  # the month's number and its nano-dollars

    def slide(self, now: int) -> None:
        while self.calls and now - self.calls[0][0] >= _WINDOW_S:
            self.tokens -= self.calls.popleft()[1]
            self.requests -= 1


class Shares:
    """Remembers what Redis said last, and lets in this replica's share of it.

    Args:
        hold_s: After how many seconds a call of which nothing is heard has ended.
        clock: Unix seconds.

    Attributes:
        replicas: How many replicas share; the last that is known.
        rank: Which of them this is, from 0.
        away_since: When Redis went away, in Unix seconds; None while it is there.
    """

    def __init__(self, hold_s: int, clock: Callable[[], float] = time.time) -> None:
        self._hold_s = hold_s
        self._clock = clock
        self._known: OrderedDict[str, tuple[Sequence[int], int, int]] = OrderedDict()
        self._spent: dict[str, _Spent] = {}
        self._flying: OrderedDict[str, tuple[int, Sequence[ScopeLimits]]] = OrderedDict()
        self.replicas = 1
        self.rank = 0
        self.away_since: float | None = None

    def note(self, scopes: Sequence[ScopeLimits], counters: Sequence[int], second: int) -> None:
        """Remembers a result of the script, with the second that Redis said."""
        at = FIRST
        known = self._known
        for limits in scopes:
            scope = limits.scope
            known[scope] = (counters, at, second)
            at += EACH
            if self._spent:
                # Redis has been told of these by now.
                self._spent.pop(scope, None)
        while len(known) > MAX_SCOPES:
            known.popitem(last=False)

    def release(self, request_id: str) -> None:
        """A call has ended; where it was let in here its places are free."""
        flying = self._flying.pop(request_id, None)
        if flying is not None:
            self._land(flying[1])

    def admit(self, call: Admission) -> Verdict:
        """Decides about a call; sets its second where it is let in."""
        now = int(self._clock())
        if call.request_id in self._flying:
            return Verdict(True)
        self._land_lost(now)
        if len(self._spent) + len(call.scopes) > MAX_SCOPES and not self._make_room(now):
            return Verdict(False)
        period = _period(now)
        refusal: Refusal | None = None
        rooms: list[Room | None] = [None, None]
        for limits in call.scopes:
            spent = self._spent.get(limits.scope) or _Spent()
            spent.slide(now)
            used = self._used(limits, now, period)
            if used is None:
                return Verdict(False)
            mine = self._mine(spent, period)
            asks = (1, call.tokens, 1, call.tokens, call.usd_nano)
            for i, limit in enumerate(limits[1:6]):
                if not isinstance(limit, int):
                    continue
                share = self._share(max(0, limit - used[i]))
                left = share - mine[i] - asks[i]
                if left < 0 or limit == 0:
                    wait = self._wait(LIMIT_NAMES[i], limit, asks[i], spent, now)
                    found = Refusal(limits.scope, LIMIT_NAMES[i], wait, limit, used[i] + mine[i])
                    if refusal is None or _waits_longer(found, refusal):
                        refusal = found
                if i < 2:
                    room = Room(limit, max(0, left), float(_WINDOW_S))
                    best = rooms[i]
                    if best is None or room.remaining < best.remaining:
                        rooms[i] = room
        if refusal is not None:
            return Verdict(False, refusal, rooms[0], rooms[1])
        self._charge(call, now, period)
        return Verdict(True, None, rooms[0], rooms[1])

    def _share(self, left: int) -> int:
        return left // self.replicas + (self.rank < left % self.replicas)

    def _used(self, limits: ScopeLimits, now: int, period: Period) -> list[int] | None:
        """Returns what Redis said was used, by limit; None where a sum is not known."""
        counters, at, second = self._known.get(limits.scope, (_NOTHING_KNOWN, 0, 0))
        used = [max(0, value) for value in counters[at : at + EACH]]
        if now - second >= _WINDOW_S:
            used[0] = used[1] = used[2] = 0
        then = _period(second)
        without = (0, 0) if self.away_since is None else _period(self.away_since)
        for i, number, limit in (
            (3, 0, limits.tokens_per_day),
            (4, 1, limits.usd_per_month),
        ):
            if limit is None:
                continue
            if then[number] != period[number]:
                # In a period that began without Redis nothing was let in but by shares.
                if not 0 < without[number] < period[number]:
                    return None
                used[i] = 0
            elif counters[at + i] < 0:
                return None
        return used

    def _mine(self, spent: _Spent, period: Period) -> tuple[int, int, int, int, int]:
        day = spent.day[1] if spent.day[0] == period[0] else 0
        month = spent.month[1] if spent.month[0] == period[1] else 0
        return spent.requests, spent.tokens, spent.flying, day, month

    def _charge(self, call: Admission, now: int, period: Period) -> None:
        call.second = now
        for limits in call.scopes:
            spent = self._spent.setdefault(limits.scope, _Spent())
            spent.calls.append((now, call.tokens))
            spent.requests += 1
            spent.tokens += call.tokens
            spent.flying += 1
            for sum_, number, amount in (
                (spent.day, period[0], call.tokens),
                (spent.month, period[1], call.usd_nano),
            ):
                if sum_[0] != number:
                    sum_[:] = (number, 0)
                sum_[1] += amount
        self._flying[call.request_id] = (now, call.scopes)

    def _land(self, scopes: Sequence[ScopeLimits]) -> None:
        for limits in scopes:
            spent = self._spent.get(limits.scope)
            if spent is not None and spent.flying:
                spent.flying -= 1

    def _land_lost(self, now: int) -> None:
        while self._flying:
            began, scopes = next(iter(self._flying.values()))
            if now - began < self._hold_s:
                return
            self._flying.popitem(last=False)
            self._land(scopes)

    def _make_room(self, now: int) -> bool:
        for scope, spent in list(self._spent.items()):
            spent.slide(now)
            if not spent.calls and not spent.flying and not spent.day[1] and not spent.month[1]:
                del self._spent[scope]
        return len(self._spent) < MAX_SCOPES // 2

    def _wait(self, name: str, limit: int, ask: int, spent: _Spent, now: int) -> float | None:
        if ask > limit:
            return None
        if name == CONCURRENT_REQUESTS:
            return _RETRY_PLACE_S
        if name in LIMIT_NAMES[:2] and spent.calls:
            return float(max(1, spent.calls[0][0] + _WINDOW_S - now))
        return _RETRY_S


def _waits_longer(one: Refusal, other: Refusal) -> bool:
    if other.retry_after_s is None or one.retry_after_s is None:
        return other.retry_after_s is not None
    return one.retry_after_s > other.retry_after_s


def _period(second: float) -> Period:
    moment = time.gmtime(second)
    return int(second) // 86400, moment.tm_year * 12 + moment.tm_mon
