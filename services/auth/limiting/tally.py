"""Counts what this replica decided, and remembers the alerts that it was told of."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from services.auth.limiting import wire
from services.auth.limiting.contract import Alert, Mode, Status, Verdict

_MAX_ALERTS = 1000


class Tally:
    """What `Limiter.status` tells.

    Args:
        without_redis: How the replica limits while Redis is away.
    """

    def __init__(self, without_redis: Mode) -> None:
        self._without_redis = without_redis
        self._mode = without_redis
        self._since = time.time()
        self._local_admitted = 0
        self._unavailable_refused = 0
        self._refused: Counter[str] = Counter()
        self._alerts: dict[tuple[str, str], Alert] = {}

    def on_redis(self, *, is_there: bool) -> None:
        """Redis came or went."""
        self._mode = Mode.REDIS if is_there else self._without_redis
        self._since = time.time()

    def on_local(self) -> None:
        """A call was let in by a share."""
        self._local_admitted += 1

    def on_refusal(self, verdict: Verdict) -> None:
        """A call was refused."""
        if verdict.refusal is None:
            self._unavailable_refused += 1
        else:
            self._refused[verdict.refusal.limit] += 1

    def take_alerts(self, found: Sequence[Any]) -> list[Alert]:
        """Remembers the alerts of an answer of the script, and returns them."""
        alerts = [wire.alert(each) for each in found]
        for each in alerts:
            self._alerts.pop((each.scope, each.limit), None)
            self._alerts[each.scope, each.limit] = each
        while len(self._alerts) > _MAX_ALERTS:
            del self._alerts[next(iter(self._alerts))]
        return alerts

    def status(self) -> Status:
        """Returns all of it."""
        return Status(
            self._mode,
            self._since,
            self._local_admitted,
            self._unavailable_refused,
            dict(self._refused),
            list(self._alerts.values()),
        )
