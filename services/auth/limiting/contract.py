"""What the limiter is asked and what it answers. Knows no Redis and no gRPC.

The written definition of what a limit lets in is the head of
`protos/infermesh/auth/v1/limit_service.proto`.
"""

import enum
from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

REQUESTS_PER_MINUTE = "requests_per_minute"
TOKENS_PER_MINUTE = "tokens_per_minute"
CONCURRENT_REQUESTS = "concurrent_requests"
TOKENS_PER_DAY = "tokens_per_day"
USD_PER_MONTH = "usd_per_month"

LIMIT_NAMES = (
    REQUESTS_PER_MINUTE,
    TOKENS_PER_MINUTE,
    CONCURRENT_REQUESTS,
    TOKENS_PER_DAY,
    USD_PER_MONTH,
)
"""The limits, named as in `infermesh.auth.v1.Limits`, in the order of `ScopeLimits`."""

MAX_COUNT = 2**52
"""Redis' Lua counts in doubles: sums of two such numbers are still exact. Larger totals are cut."""


class ScopeLimits(NamedTuple):
    """The limits of one scope, made once for each row; None where it is not limited.

    Attributes:
        scope: `t:acme`, `p:acme/web`, `k:key_x` or `m:key_x/model`.
        requests_per_minute: Calls in 60 one-second slots.
        tokens_per_minute: Tokens in 60 one-second slots.
        concurrent_requests: Calls at the same time.
        tokens_per_day: Tokens in a day of UTC.
        usd_per_month: Billionths of a US dollar in a month of UTC.
        alert_percents: At which percentages of the last two an alert is raised, 1 to 100.
    """

    scope: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    tokens_per_day: int | None = None
    usd_per_month: int | None = None
    alert_percents: tuple[int, ...] = ()


class Refusal(NamedTuple):
    """Why a call is refused; of several limits the one that takes longest.

    Attributes:
        scope: As in `ScopeLimits`.
        limit: One of `LIMIT_NAMES`.
        retry_after_s: After how many seconds it is worth another try; None where the call alone is
            larger than the limit, so that it never is.
        allowed: The limit.
        used: What is used of it, reservations included; dollars in billionths.
    """

    scope: str
    limit: str
    retry_after_s: float | None
    allowed: int
    used: int


class Room(NamedTuple):
    """What is left of a limit by the minute, after this call.

    Attributes:
        limit: What the limit allows.
        remaining: What is left, 0 or more.
        reset_s: Seconds until all of it is left again at the latest, where no further call comes.
    """

    limit: int
    remaining: int
    reset_s: float


class Alert(NamedTuple):
    """A percentage of a limit that was passed, told once to one replica in each period.

    Attributes:
        scope: As in `ScopeLimits`.
        limit: `tokens_per_day` or `usd_per_month`.
        percent: The highest percentage that was passed.
        period: The day or the month's first day, `2026-11-01`.
    """

    scope: str
    limit: str
    percent: int
    period: str


class Verdict(NamedTuple):
    """The answer to `Limiter.admit`.

    Attributes:
        admitted: Whether the call may go on.
        refusal: Which limit refused it. None for a call that was admitted, and for one that was
            refused because nobody can tell: Redis is away and the setting says `refuse`, or what
            the ledger has is not known. The caller then gets STORE_UNAVAILABLE.
        requests: The tightest of `requests_per_minute`; None where no scope has one.
        tokens: The tightest of `tokens_per_minute`; None where no scope has one.
        alerts: Passed with this call, and not told before.
        holds_place: Whether `Limiter.release` must be told of the end even where the ledger will
            settle the call: it holds a place among concurrent ones, or the limiter cannot tell.
    """

    admitted: bool
    refusal: Refusal | None = None
    requests: Room | None = None
    tokens: Room | None = None
    alerts: tuple[Alert, ...] = ()
    holds_place: bool = True


class Period(enum.StrEnum):
    """Over which time a sum of the ledger goes."""

    DAY = "d"
    MONTH = "u"


class Settlement(NamedTuple):
    """What a call took by the ledger: its id and its tokens, None where they are not known."""

    request_id: str
    tokens: int | None


class Wanted(NamedTuple):
    """A sum of the ledger that is asked for; `start_date` is the first day, `2026-11-01`."""

    scope: str
    period: Period
    start_date: str


class Total(NamedTuple):
    """What the ledger has of a scope in a period; dollars in billionths, rounded up."""

    scope: str
    period: Period
    start_date: str
    tokens: int
    usd_nano: int
    version: int


class Use(NamedTuple):
    """What is used of one limit now.

    Attributes:
        limit: One of `LIMIT_NAMES`.
        allowed: The limit.
        used: What is used of it, reservations included; dollars in billionths.
        reserved: What calls that run have reserved of it; None where none are made.
        reset_after_s: Until all of it can be used again; None for calls at the same time.
    """

    limit: str
    allowed: int
    used: int
    reserved: int | None
    reset_after_s: float | None


class Mode(enum.Enum):
    """How the limiter limits now."""

    REDIS = "redis"
    LOCAL = "local"
    REFUSE = "refuse"


class Status(NamedTuple):
    """How this replica limits, counts since the process started.

    Attributes:
        mode: How.
        since: Since when, as `time.time`.
        local_admitted: Calls that were let in by a share.
        unavailable_refused: Calls that were refused because nobody could tell.
        refused: Calls that were refused by a limit, by its name.
        alerts: Those that this replica was told of, the newest of each scope and limit.
    """

    mode: Mode
    since: float
    local_admitted: int
    unavailable_refused: int
    refused: Mapping[str, int]
    alerts: Sequence[Alert]


class LimiterAwayError(Exception):
    """Redis does not answer, so that this cannot be said or done now."""


class TotalsUnknownError(Exception):
    """Whoever keeps the ledger does not answer."""


class TotalsSource(Protocol):
    """Knows what the ledger has."""

    async def get_totals(self, wanted: Sequence[Wanted]) -> Sequence[Total]:
        """Returns a total for each that is wanted, 1000 at most, in this order.

        Raises:
            TotalsUnknownError: It does not answer.
        """
        ...


FindLimits = Callable[[str], ScopeLimits | None]
"""Returns the limits of a scope, None where it has none."""


class Limiter(Protocol):
    """Limits calls over all replicas. Every method is called on the event loop's thread."""

    def admit(
        self, request_id: str, scopes: Sequence[ScopeLimits], tokens: int, usd_nano: int
    ) -> "Future[Verdict]":
        """Asks for a call; all scopes are charged or none. The future never raises.

        Callers without limits must not come here.

        Args:
            request_id: The call's id. Asking again while the call runs charges nothing.
            scopes: 1 to 8, each once.
            tokens: The reservation: the prompt's estimate and what may be made.
            usd_nano: What that costs at most, in billionths of a dollar; 0 where it has no price.
        """
        ...

    def release(self, request_id: str, *, reached_node: bool, caller_left: bool = False) -> None:
        """The call has ended: its place among the concurrent ones is free.

        Where it reached no node its reservation and its tokens are given back too; else they stand
        until it is settled. Where the caller left, and the ledger does not know what it took by
        then, the reservation counts for the whole day and month. Told to Redis in the background,
        and again while Redis is away.
        """
        ...

    async def settle(
        self,
        settlements: Sequence[Settlement],
        totals: Sequence[Total],
        find: FindLimits | None = None,
    ) -> list[Alert]:
        """Takes in what calls took and what the ledger has; replays change nothing.

        Args:
            settlements: Calls of any replica; those without limits are passed over.
            totals: Taken where the version is higher than what is known.
            find: With it alerts are found at once, and not with the scope's next call only.

        Returns:
            The alerts that are passed now and were not told before.

        Raises:
            LimiterAwayError: Not all of it is in Redis. Send it again.
        """
        ...

    async def state(self, limits: ScopeLimits) -> list[Use]:
        """Returns what is used, one for each limit that is set.

        Raises:
            LimiterAwayError: Redis does not answer, or a total is not known.
        """
        ...

    def status(self) -> Status:
        """Returns how this replica limits."""
        ...
