"""Says what is used of a scope's limits."""

from collections.abc import Sequence

from services.auth.limiting.contract import (
    CONCURRENT_REQUESTS,
    REQUESTS_PER_MINUTE,
    TOKENS_PER_DAY,
    TOKENS_PER_MINUTE,
    USD_PER_MONTH,
    ScopeLimits,
    Use,
)


def uses(limits: ScopeLimits, state: Sequence[int]) -> list[Use]:
    """Returns one for each limit that is set, from the script's answer to `STATE`."""
    _, requests, requests_ms, tokens, tokens_ms, concurrent, *sums = state
    day, day_reserved, day_ms, month, month_reserved, month_ms = sums
    found = (
        (REQUESTS_PER_MINUTE, limits.requests_per_minute, requests, None, requests_ms),
        (TOKENS_PER_MINUTE, limits.tokens_per_minute, tokens, None, tokens_ms),
        (CONCURRENT_REQUESTS, limits.concurrent_requests, concurrent, None, None),
        (TOKENS_PER_DAY, limits.tokens_per_day, day + day_reserved, day_reserved, day_ms),
        (USD_PER_MONTH, limits.usd_per_month, month + month_reserved, month_reserved, month_ms),
    )
    return [
        Use(name, limit, used, reserved, None if ms is None else ms / 1000)
        for name, limit, used, reserved, ms in found
        if limit is not None
    ]
