"""The limits of auth over gRPC: one replica and several, on a real PostgreSQL and Redis."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from envoy.service.accesslog.v3 import als_pb2, als_pb2_grpc
from envoy.service.auth.v3 import external_auth_pb2
from google.protobuf.json_format import MessageToDict

from contract.test_auth import Replica, becomes, refusal, running, settings
from infermesh.auth.v1 import limit_service_pb2 as pb
from infermesh.auth.v1 import limit_service_pb2_grpc
from infermesh.metrics.v1 import (
    price_service_pb2,
    price_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from services.kit import headers
from support import becomes_within, free_port
from unit.auth.auth_samples import REST_CHAT, check_request, rest_headers

MODEL = "smollm2-135m"


class FakeMetrics(
    usage_service_pb2_grpc.UsageServiceServicer, price_service_pb2_grpc.PriceServiceServicer
):
    """A ledger that has what it is told."""

    def __init__(self) -> None:
        self.address = ""
        self.tokens: dict[str, int] = {}
        self.usd = "0"
        self.prices: list[price_service_pb2.Price] = []
        self.version = 1

    async def GetScopeTotals(self, request: Any, context: Any) -> Any:  # noqa: N802
        return usage_service_pb2.GetScopeTotalsResponse(
            totals=[
                pb.ScopeTotal(
                    scope=each.scope,
                    period=each.period,
                    start_date=each.start_date,
                    tokens=self.tokens.get(each.scope.key_id or each.scope.tenant, 0),
                    usd=self.usd,
                    version=self.version,
                )
                for each in request.scopes
            ]
        )

    async def ListPrices(self, request: Any, context: Any) -> Any:  # noqa: N802
        return price_service_pb2.ListPricesResponse(prices=self.prices)


@pytest.fixture
async def metrics() -> AsyncIterator[FakeMetrics]:
    fake = FakeMetrics()
    server = grpc.aio.server()
    usage_service_pb2_grpc.add_UsageServiceServicer_to_server(fake, server)
    price_service_pb2_grpc.add_PriceServiceServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield fake
    await server.stop(0)


class Limited:
    """A replica, seen as Envoy, metrics and administrators see it."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.limits = limit_service_pb2_grpc.LimitServiceStub(replica.channel)
        self._number = 0

    async def key(self, **fields: object) -> tuple[str, str]:
        made = await self.replica.create(**fields)
        return made.key.key_id, made.secret

    async def set(self, **fields: Any) -> pb.Limits:
        scope = {
            name: fields.pop(name)
            for name in pb.LimitScope.DESCRIPTOR.fields_by_name
            if name in fields
        }
        limits = pb.Limits(scope=pb.LimitScope(**scope), **fields)
        return await self.limits.SetLimits(pb.SetLimitsRequest(limits=limits), timeout=15)

    async def check(self, secret: str, request_id: str = "", **rest: Any) -> "Answer":
        self._number += 1
        said = {"model": MODEL, "prompt_bytes": 400, "max_tokens": 50} | rest
        request_id = request_id or f"{id(self)}-{self._number}"
        sent = rest_headers(secret) | {"x-request-id": request_id}
        request = check_request(REST_CHAT, sent, rest=said)
        reply = await self.replica.authorization.Check(request, timeout=20)
        return Answer(request_id, reply)

    async def uses(self, **scope: str) -> dict[str, tuple[str, str]]:
        request = pb.GetLimitStateRequest(scope=pb.LimitScope(**scope))
        state = await self.limits.GetLimitState(request, timeout=20)
        return {each.limit: (each.used, each.reserved) for each in state.uses}

    async def end(self, *request_ids: str, host: bool = True) -> None:
        """Tells of the end of calls as Envoy does."""
        message = als_pb2.StreamAccessLogsMessage()
        for request_id in request_ids:
            entry = message.http_logs.log_entry.add()
            entry.request.request_id = request_id
            entry.response.response_code.value = 200
            entry.response.response_code_details = "via_upstream"
            if host:
                entry.common_properties.upstream_remote_address.socket_address.address = "::1"

        async def messages() -> AsyncIterator[Any]:
            yield message

        stub = als_pb2_grpc.AccessLogServiceStub(self.replica.channel)
        await stub.StreamAccessLogs(messages(), timeout=20)

    async def settle(self, request_id: str, tokens: int, *totals: pb.ScopeTotal) -> None:
        request = pb.SettleUsageRequest(
            settlements=[pb.Settlement(request_id=request_id, tokens=tokens)], totals=totals
        )
        await self.limits.SettleUsage(request, timeout=20)


class Answer:
    def __init__(self, request_id: str, reply: external_auth_pb2.CheckResponse) -> None:
        self.request_id = request_id
        self.reply = reply
        self.is_admitted = reply.status.code == 0
        self.status = reply.denied_response.status.code
        found = reply.ok_response.response_headers_to_add or reply.denied_response.headers
        self.headers = {each.header.key: each.header.value for each in found}


@contextlib.asynccontextmanager
async def limited(postgres_url: str, redis_url: str, **fields: str) -> AsyncIterator[Limited]:
    # Lists of other tests' rows are none of ours; the scopes of each test are its own.
    async with running(settings(postgres_url, redis_url=redis_url, **fields)) as replica:
        yield Limited(replica)


@pytest.fixture
async def auth(postgres_url: str, redis_url: str, metrics: FakeMetrics) -> AsyncIterator[Limited]:
    async with limited(postgres_url, redis_url, metrics_address=metrics.address) as one:
        yield one


async def test_the_life_of_limits(auth: Limited) -> None:
    made = await auth.set(
        tenant="life",
        requests_per_minute=60,
        tokens_per_minute=0,
        usd_per_month="12.5",
        alert_percents=[100, 50],
    )
    assert MessageToDict(made, preserving_proto_field_name=True) == {
        "scope": {"tenant": "life"},
        "requests_per_minute": "60",
        "tokens_per_minute": "0",
        "usd_per_month": "12.50",
        "alert_percents": [50, 100],
        "update_time": made.update_time.ToJsonString(),
    }
    scope = pb.LimitScope(tenant="life")
    assert await auth.limits.GetLimits(pb.GetLimitsRequest(scope=scope)) == made
    changed = await auth.set(tenant="life", concurrent_requests=3)
    # They take the place of all that was limited until now.
    assert not changed.HasField("requests_per_minute")
    assert not changed.HasField("usd_per_month")
    assert await auth.limits.DeleteLimits(pb.DeleteLimitsRequest(scope=scope)) == changed
    for call in (
        auth.limits.GetLimits(pb.GetLimitsRequest(scope=scope)),
        auth.limits.DeleteLimits(pb.DeleteLimitsRequest(scope=scope)),
        auth.limits.GetLimitState(pb.GetLimitStateRequest(scope=scope)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert refusal(caught).reason_name == "NOT_FOUND"


async def test_pages_are_in_order_and_whole(auth: Limited) -> None:
    scopes = [
        {"tenant": "page-a"},
        {"tenant": "page-a", "project": "web"},
        {"tenant": "page-b"},
        {"key_id": "key_page"},
        {"key_id": "key_page", "model": "Z/ä".replace("ä", "a")},
        {"key_id": "key_page", "model": "a"},
    ]
    for scope in reversed(scopes):
        await auth.set(**scope, requests_per_minute=1)
    token, seen = "", []
    while True:
        page = await auth.limits.ListLimits(pb.ListLimitsRequest(page_size=2, page_token=token))
        seen += [each.scope for each in page.limits]
        token = page.next_page_token
        if not token:
            break
    places = [(each.tenant, each.project, each.key_id, each.model) for each in seen]
    assert places == sorted(set(places))
    assert all(pb.LimitScope(**scope) in seen for scope in scopes)


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"scope": {}},
        {"scope": {"project": "web"}},
        {"scope": {"model": "m"}},
        {"scope": {"tenant": "acme", "key_id": "key_1"}},
        {"scope": {"tenant": "A B"}},
        {"scope": {"key_id": "a/b"}},
        {"scope": {"tenant": "acme"}, "requests_per_minute": -1},
        {"scope": {"tenant": "acme"}, "tokens_per_minute": 10**12 + 1},
        {"scope": {"tenant": "acme"}, "usd_per_month": "-1"},
        {"scope": {"tenant": "acme"}, "usd_per_month": "1e3"},
        {"scope": {"tenant": "acme"}, "usd_per_month": "1.0000001"},
        {"scope": {"tenant": "acme"}, "alert_percents": [0]},
        {"scope": {"tenant": "acme"}, "alert_percents": [50, 50]},
    ],
)
async def test_what_cannot_be_set(auth: Limited, limits: dict[str, Any]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await auth.limits.SetLimits(pb.SetLimitsRequest(limits=pb.Limits(**limits)))
    assert refusal(caught).reason_name == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "token", ["nope", "W10", "WzEsMiwzLDRd", "eyJhIjoxfQ", "WyIiLCIiLCIiLCJcdTAwMDAiXQ"]
)
async def test_page_tokens_of_others(auth: Limited, token: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await auth.limits.ListLimits(pb.ListLimitsRequest(page_token=token))
    assert refusal(caught).reason_name == "INVALID_ARGUMENT"


async def test_calls_are_counted_and_refused(auth: Limited) -> None:
    key_id, secret = await auth.key(tenant="count")
    await auth.set(key_id=key_id, requests_per_minute=3, tokens_per_minute=100_000)
    await auth.set(tenant="count", requests_per_minute=50)
    for left in (2, 1, 0):
        answer = await auth.check(secret)
        assert answer.is_admitted
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        assert answer.headers["x-ratelimit-limit-tokens"] == "100000"
    answer = await auth.check(secret)
    assert answer.status == 429
    assert 1 <= int(answer.headers[headers.RETRY_AFTER]) <= 60
    assert b"rate_limit_exceeded" in answer.reply.denied_response.body.encode()
    # What was refused was charged nowhere.
    uses = await auth.uses(tenant="count")
    assert uses["requests_per_minute"][0] == "3"
    # Another key of the tenant goes on.
    _, other = await auth.key(tenant="count")
    assert (await auth.check(other)).is_admitted


async def test_a_call_is_limited_by_its_project_and_its_model(auth: Limited) -> None:
    key_id, secret = await auth.key(tenant="deep", project="web")
    await auth.set(tenant="deep", project="web", requests_per_minute=2)
    await auth.set(key_id=key_id, model=MODEL, requests_per_minute=1)
    assert (await auth.check(secret)).is_admitted
    assert not (await auth.check(secret)).is_admitted
    assert (await auth.check(secret, model="another")).is_admitted
    answer = await auth.check(secret, model="another")
    assert answer.status == 429
    assert "project `web`" in answer.reply.denied_response.body


async def test_places_are_free_when_calls_end(auth: Limited) -> None:
    key_id, secret = await auth.key()
    await auth.set(key_id=key_id, concurrent_requests=2)
    first, second = await auth.check(secret), await auth.check(secret)
    assert first.is_admitted
    assert second.is_admitted
    assert (await auth.check(secret)).status == 429
    await auth.end(first.request_id)

    async def is_free() -> bool:
        return (await auth.uses(key_id=key_id))["concurrent_requests"][0] == "1"

    await becomes(is_free)
    assert (await auth.check(secret)).is_admitted


async def test_envoys_streams_end_with_the_process(postgres_url: str, redis_url: str) -> None:
    stop = asyncio.Event()

    async def messages() -> AsyncIterator[Any]:
        yield als_pb2.StreamAccessLogsMessage()
        await stop.wait()

    async with contextlib.AsyncExitStack() as stack:
        async with limited(postgres_url, redis_url, drain_s="20") as auth:
            # Envoy's own, which outlives the replica.
            channel = grpc.aio.insecure_channel(auth.replica.address)
            await stack.enter_async_context(channel)
            call = als_pb2_grpc.AccessLogServiceStub(channel).StreamAccessLogs(messages())
            key_id, _ = await auth.key()
            assert key_id
            began = time.monotonic()
            stream = asyncio.ensure_future(call)
        # It did not wait for the stream to end by itself, which is the drain's 20 s.
        assert time.monotonic() - began < 15
        assert isinstance(await stream, als_pb2.StreamAccessLogsResponse)
        stop.set()


async def test_tokens_become_the_true_count(auth: Limited) -> None:
    key_id, secret = await auth.key()
    await auth.set(key_id=key_id, tokens_per_minute=10_000)
    one, two, three = [await auth.check(secret) for _ in range(3)]
    assert (await auth.uses(key_id=key_id))["tokens_per_minute"][0] == "450"
    await auth.settle(one.request_id, 30)
    await auth.settle(one.request_id, 30)
    await auth.settle(two.request_id, 200)
    # No node took the third: everything is given back.
    await auth.end(three.request_id, host=False)

    async def is_true() -> bool:
        return (await auth.uses(key_id=key_id))["tokens_per_minute"][0] == "230"

    await becomes(is_true)


async def test_a_day_and_a_month_are_the_ledgers(auth: Limited, metrics: FakeMetrics) -> None:
    key_id, secret = await auth.key(tenant="quota")
    metrics.tokens = {key_id: 800}
    metrics.usd = "0.9"
    metrics.prices = [price_service_pb2.Price(model=MODEL, input_usd="100", output_usd="200")]
    await auth.set(key_id=key_id, tokens_per_day=1_000)
    answer = await auth.check(secret)
    assert answer.is_admitted
    # 800 of the ledger, 150 reserved, 150 more have no room.
    answer = await auth.check(secret)
    assert answer.status == 429
    assert "insufficient_quota" in answer.reply.denied_response.body

    other_id, other = await auth.key(tenant="quota-2")
    # 100 × 100 $ and 50 × 200 $ for a million are 0.02 $: with 0.9 of the ledger five have room.
    await auth.set(key_id=other_id, usd_per_month="1")

    async def has_prices() -> bool:
        return (await auth.check(other)).is_admitted and (await auth.uses(key_id=other_id))[
            "usd_per_month"
        ][1] not in ("0.00", "0")

    await becomes(has_prices, 20)
    admitted = 0
    for _ in range(10):
        admitted += (await auth.check(other)).is_admitted
    assert admitted <= 4
    used = float((await auth.uses(key_id=other_id))["usd_per_month"][0])
    assert 0.98 <= used <= 1


async def test_a_limit_that_is_set_again_knows_what_was_used_meanwhile(
    auth: Limited, metrics: FakeMetrics
) -> None:
    key_id, secret = await auth.key()
    await auth.set(key_id=key_id, tokens_per_day=1_000)
    assert (await auth.check(secret)).is_admitted
    scope = pb.LimitScope(key_id=key_id)
    await auth.limits.DeleteLimits(pb.DeleteLimitsRequest(scope=scope))
    # Calls without limits are not settled.
    metrics.tokens, metrics.version = {key_id: 990}, 2
    await auth.set(key_id=key_id, tokens_per_day=1_000)
    assert (await auth.check(secret)).status == 429


async def test_an_alert_is_told_once(auth: Limited, metrics: FakeMetrics) -> None:
    key_id, secret = await auth.key()
    await auth.set(key_id=key_id, tokens_per_day=1_000, alert_percents=[50, 80])
    assert (await auth.check(secret)).is_admitted
    today = time.strftime("%Y-%m-%d", time.gmtime())
    total = pb.ScopeTotal(
        scope=pb.LimitScope(key_id=key_id),
        period=pb.LIMIT_PERIOD_DAY,
        start_date=today,
        tokens=700,
        usd="0",
        version=7,
    )
    for _ in range(3):
        await auth.settle("nobody", 1, total)
    status = await auth.limits.GetLimiterStatus(pb.GetLimiterStatusRequest())
    assert status.mode == pb.LIMITER_MODE_REDIS
    alerts = [each for each in status.alerts if each.scope.key_id == key_id]
    assert [(each.limit, each.percent) for each in alerts] == [("tokens_per_day", 50)]


async def test_without_redis_nothing_can_be_limited(postgres_url: str) -> None:
    async with running(settings(postgres_url)) as replica:
        auth = Limited(replica)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await auth.set(tenant="nothing", requests_per_minute=1)
        assert refusal(caught).reason_name == "FAILED_PRECONDITION"
        await auth.settle("r", 5)
        status = await auth.limits.GetLimiterStatus(pb.GetLimiterStatusRequest())
        assert status == pb.LimiterStatus()


async def test_without_metrics_nothing_is_limited_by_day(postgres_url: str, redis_url: str) -> None:
    async with limited(postgres_url, redis_url) as auth:
        await auth.set(tenant="minutes", requests_per_minute=1)
        for fields in ({"tokens_per_day": 1}, {"usd_per_month": "1"}):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await auth.set(tenant="minutes", **fields)
            assert refusal(caught).reason_name == "FAILED_PRECONDITION"


@pytest.mark.parametrize("how", ["refuse", "local"])
async def test_while_redis_is_away_the_setting_says_what_happens(
    postgres_url: str, how: str
) -> None:
    away = f"redis://127.0.0.1:{free_port()}"
    async with limited(postgres_url, away, limits_without_redis=how) as auth:
        key_id, secret = await auth.key(tenant=f"away-{how}")
        closed_id, closed = await auth.key()
        _, unlimited = await auth.key()
        await auth.set(key_id=key_id, requests_per_minute=5)
        await auth.set(key_id=closed_id, requests_per_minute=0)
        answers = [await auth.check(secret) for _ in range(8)]
        status = await auth.limits.GetLimiterStatus(pb.GetLimiterStatusRequest())
        if how == "refuse":
            assert {each.status for each in answers} == {503}
            assert (await auth.check(closed)).status == 503
            assert status.mode == pb.LIMITER_MODE_REFUSE
            assert status.unavailable_refused_count == 8
        else:
            # One replica alone has the whole of what was left.
            assert [each.is_admitted for each in answers] == [True] * 5 + [False] * 3
            assert (await auth.check(closed)).status == 429
            assert status.mode == pb.LIMITER_MODE_LOCAL
            assert status.local_admitted_count == 5
        assert (await auth.check(unlimited)).is_admitted
        state = auth.limits.GetLimitState(
            pb.GetLimitStateRequest(scope=pb.LimitScope(key_id=key_id))
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await state
        assert refusal(caught).reason_name == "STORE_UNAVAILABLE"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await auth.settle(answers[0].request_id, 5)
        assert refusal(caught).reason_name == "STORE_UNAVAILABLE"


async def test_three_replicas_limit_as_one_and_follow_changes(
    postgres_url: str, redis_url: str
) -> None:
    async with (
        limited(postgres_url, redis_url) as one,
        limited(postgres_url, redis_url) as two,
        limited(postgres_url, redis_url) as three,
    ):
        replicas = (one, two, three)

        async def change() -> float:
            took_s = []
            key_id, secret = await one.key(tenant="three")

            async def all_know() -> bool:
                answers = [(await each.check(secret)).is_admitted for each in replicas]
                return all(answers)

            await becomes(all_know)
            await one.set(key_id=key_id, requests_per_minute=30)

            async def all_limit() -> bool:
                answers = [await each.check(secret) for each in replicas]
                return all("x-ratelimit-limit-requests" in each.headers for each in answers)

            took_s.append(await becomes(all_limit))
            answers = await asyncio.gather(
                *(each.check(secret) for _ in range(30) for each in replicas)
            )
            uses = await two.uses(key_id=key_id)
            assert uses["requests_per_minute"][0] == "30"
            assert sum(each.is_admitted for each in answers) <= 30
            # A wider limit lets calls in again everywhere, none at all after it is gone.
            await three.set(key_id=key_id, requests_per_minute=1000)

            async def all_admit() -> bool:
                return all([(await each.check(secret)).is_admitted for each in replicas])

            took_s.append(await becomes(all_admit))
            await two.limits.DeleteLimits(
                pb.DeleteLimitsRequest(scope=pb.LimitScope(key_id=key_id))
            )

            async def none_limits() -> bool:
                answers = [await each.check(secret) for each in replicas]
                return all(each.headers == {} for each in answers)

            took_s.append(await becomes(none_limits))
            return max(took_s)

        await becomes_within(1.0, change)
