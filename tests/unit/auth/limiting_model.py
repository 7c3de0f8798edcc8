"""The written definition of limits (`limit_service.proto`) in plain Python: lists, no sums kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.auth.limiting.contract import LIMIT_NAMES, ScopeLimits


@dataclass
class Call:
    """A call that was let in."""

    second: int
    scopes: tuple[str, ...]
    tokens: int
    usd: int
    with_places: tuple[str, ...]  # those of the scopes that limited concurrent calls
    counted: list[list[int]] = field(default_factory=list)  # second and tokens
    has_place: bool = True
    has_reservation: bool = True
    is_settled: bool = False


class Model:
    """Says what is let in, by walking over every call that ever was.

    Args:
        hold_s: How long a reservation lasts, to the minute.
    """

    def __init__(self, hold_s: int) -> None:
        self.hold_s = hold_s
        self.calls: dict[str, Call] = {}
        self.totals: dict[str, tuple[int, int]] = {}  # scope to tokens of the day, version

    def uses(self, scope: str, now: int) -> tuple[int, int, int, int, int]:
        """Requests, tokens, places, tokens reserved and dollars reserved."""
        of = [call for call in self.calls.values() if scope in call.scopes]
        recent = [call for call in of if 0 <= now - call.second < 60]
        parts = [part for call in of for part in call.counted if 0 <= now - part[0] < 60]
        live = [call for call in of if (call.second + self.hold_s) // 60 >= now // 60]
        held = [call for call in live if call.has_reservation]
        return (
            len(recent),
            sum(part[1] for part in parts),
            sum(call.has_place and scope in call.with_places for call in live),
            sum(call.tokens for call in held),
            sum(call.usd for call in held),
        )

    def refusals(
        self, scopes: Sequence[ScopeLimits], tokens: int, usd: int, now: int
    ) -> set[tuple[str, str]]:
        """Which limits have no room."""
        found = set()
        for limits in scopes:
            requests, minute, places, day, month = self.uses(limits.scope, now)
            day += self.totals.get(limits.scope, (0, 0))[0]
            after = (requests + 1, minute + tokens, places + 1, day + tokens, month + usd)
            for name, limit, value in zip(LIMIT_NAMES, limits[1:6], after, strict=True):
                if limit is not None and (value > limit or limit == 0):
                    found.add((limits.scope, name))
        return found

    def admit(self, id_: str, scopes: Sequence[ScopeLimits], tokens: int, usd: int, now: int):
        """Returns what refuses; nothing for a call that is let in."""
        known = self.calls.get(id_)
        if known is not None and known.has_place:
            return set()
        found = self.refusals(scopes, tokens, usd, now)
        if not found:
            names = tuple(limits.scope for limits in scopes)
            with_places = tuple(
                limits.scope for limits in scopes if limits.concurrent_requests is not None
            )
            self.calls[id_] = Call(now, names, tokens, usd, with_places, [[now, tokens]])
        return found

    def release(self, id_: str, reached: bool, now: int) -> None:
        """The call has ended."""
        call = self.calls.get(id_)
        if call is None:
            return
        call.has_place = False
        if not reached and not call.is_settled:
            call.has_reservation = False
            self._recount(call, 0, now)

    def settle(self, id_: str, tokens: int | None, now: int) -> None:
        """The ledger has it."""
        call = self.calls.get(id_)
        if call is None:
            return
        call.has_place = False
        if tokens is not None:
            call.has_reservation, call.is_settled = False, True
            self._recount(call, tokens, now)

    def total(self, scope: str, tokens: int, version: int) -> None:
        """The ledger's sum."""
        if version > self.totals.get(scope, (0, -1))[1]:
            self.totals[scope] = tokens, version

    @staticmethod
    def _recount(call: Call, tokens: int, now: int) -> None:
        surplus = sum(part[1] for part in call.counted) - tokens
        if surplus < 0:
            call.counted.append([now, -surplus])
        for part in reversed(call.counted):
            back = min(part[1], max(0, surplus))
            part[1] -= back
            surplus -= back
