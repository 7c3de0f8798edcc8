"""Of the eight totals that a call changes only those go to Redis that something is decided by."""

import time

import pytest
import redis

from contract.test_limits_service import FakeMetrics, Limited, auth, metrics
from infermesh.auth.v1 import limit_service_pb2 as pb

__all__ = ["auth", "metrics"]


def total(key_id: str, period: int, start_date: str) -> pb.ScopeTotal:
    scope = pb.LimitScope(key_id=key_id)
    return pb.ScopeTotal(
        scope=scope,
        period=period,  # type: ignore[arg-type]
        start_date=start_date,
        tokens=700,
        usd="0.5",
        version=9,
    )


def known(url: str, key_id: str) -> set[str]:
    """Which totals of a key Redis has: `d` of days, `u` of months."""
    with redis.Redis.from_url(url) as client:
        keys = [*client.scan_iter(f"infermesh:limits:?:*:k:{key_id}:*")]
        return {key.decode().split(":")[2] for key in keys}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"requests_per_minute": 5}, set()),
        ({"tokens_per_day": 1000}, {"d"}),
        ({"usd_per_month": "1"}, {"u"}),
        ({"tokens_per_day": 1000, "usd_per_month": "1"}, {"d", "u"}),
    ],
)
async def test_only_what_is_limited_goes_to_redis(
    auth: Limited,
    metrics: FakeMetrics,
    redis_url: str,
    limits: dict[str, object],
    expected: set[str],
) -> None:
    key_id, _ = await auth.key()
    await auth.set(key_id=key_id, **limits)
    now = time.gmtime()
    day, month = time.strftime("%Y-%m-%d", now), time.strftime("%Y-%m-01", now)
    await auth.settle(
        "nobody",
        1,
        total(key_id, pb.LIMIT_PERIOD_DAY, day),
        total(key_id, pb.LIMIT_PERIOD_MONTH, month),
    )
    assert known(redis_url, key_id) == expected
    if "d" in expected:
        state = await auth.uses(key_id=key_id)
        assert state["tokens_per_day"] == ("700", "0")
