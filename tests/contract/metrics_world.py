"""What tests of the ledger share: the service in this process, and events."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from infermesh.auth.v1 import limit_service_pb2 as limits
from infermesh.auth.v1 import limit_service_pb2_grpc as limits_grpc
from infermesh.metrics.v1 import price_service_pb2 as prices_pb
from infermesh.metrics.v1 import price_service_pb2_grpc as prices_grpc
from infermesh.metrics.v1 import usage_service_pb2 as pb
from infermesh.metrics.v1 import usage_service_pb2_grpc as usage_grpc
from services.kit import database
from services.kit.server import serving
from services.metrics.app import make_app
from services.metrics.settings import MetricsSettings
from services.metrics.tables import metadata

START_S = 1_795_000_000
"""2026-11-18, 11:06:40 UTC."""
DAY, MONTH = "2026-11-18", "2026-11-01"


def settings(url: str, state_dir: Path, auth: str | None = None) -> MetricsSettings:
    return MetricsSettings(database_url=url, state_dir=state_dir, auth_address=auth, drain_s=0)


@contextlib.asynccontextmanager
async def running(made: MetricsSettings) -> AsyncIterator["Service"]:
    async with (
        serving(made, make_app(made)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Service(channel)


async def wipe(url: str) -> None:
    """Empties the tables, where there are any."""
    engine = database.make_engine(url)
    await database.create_tables(engine, metadata)
    tables = ", ".join(str(table) for table in metadata.sorted_tables)
    async with engine.begin() as connection:
        await connection.execute(sa.text(f"TRUNCATE {tables}"))
    await engine.dispose()


class Service:
    """Calls the service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.usage: Any = usage_grpc.UsageServiceStub(channel)
        self.prices: Any = prices_grpc.PriceServiceStub(channel)

    async def record(self, *events: pb.UsageEvent) -> int:
        answer = await self.usage.RecordUsage(pb.RecordUsageRequest(events=events))
        return int(answer.recorded_count)

    async def set_price(
        self, model: str, input_usd: str, output_usd: str, cached_usd: str | None = None
    ) -> prices_pb.Price:
        price = prices_pb.Price(
            model=model, input_usd=input_usd, cached_input_usd=cached_usd, output_usd=output_usd
        )
        made: prices_pb.Price = await self.prices.SetPrice(prices_pb.SetPriceRequest(price=price))
        return made

    async def events(self) -> dict[str, pb.UsageEvent]:
        answer = await self.usage.ListUsageEvents(pb.ListUsageEventsRequest(page_size=1000))
        return {each.request_id: each for each in answer.events}

    async def sums(self, *by: int, **wanted: object) -> list[pb.UsageTotal]:
        request = pb.GetUsageTotalsRequest(group_by=by, **wanted)  # type: ignore[arg-type]
        return list((await self.usage.GetUsageTotals(request)).totals)

    async def total(
        self, period: int = limits.LIMIT_PERIOD_DAY, start: str = DAY, **scope: str
    ) -> limits.ScopeTotal:
        named = pb.ScopePeriod(
            scope=limits.LimitScope(**scope),
            period=period,  # type: ignore[arg-type]
            start_date=start,
        )
        answer = await self.usage.GetScopeTotals(pb.GetScopeTotalsRequest(scopes=[named]))
        total: limits.ScopeTotal = answer.totals[0]
        return total


def event(request_id: str, attempt: int = 1, **changed: object) -> pb.UsageEvent:
    fields: dict[str, object] = {
        "tenant": "acme",
        "project": "web",
        "key_id": "key-1",
        "model": "m",
        "node_id": "node-1",
        "operation": pb.OPERATION_CHAT,
        "outcome": pb.OUTCOME_OK,
        "prompt_tokens": 30,
        "completion_tokens": 4,
        "cached_tokens": 10,
        "start_time": Timestamp(seconds=START_S),
        "duration": Duration(nanos=20_000_000),
    }
    fields.update(changed)
    return pb.UsageEvent(request_id=request_id, attempt=attempt, **fields)  # type: ignore[arg-type]


class Auth(limits_grpc.LimitServiceServicer):
    """Plays auth: notes what it is told.

    Attributes:
        settled: What calls took, by request id, as it was last told.
        totals: The totals with the highest version, by what they are of.
        calls: The calls that were answered.
        fail_with: What to answer instead, where set.
        began: How many calls came.
    """

    def __init__(self) -> None:
        self.settled: dict[str, int | None] = {}
        self.totals: dict[bytes, limits.ScopeTotal] = {}
        self.calls: list[limits.SettleUsageRequest] = []
        self.fail_with: grpc.StatusCode | None = None
        self.began = 0

    async def SettleUsage(  # noqa: N802
        self, request: Any, context: Any
    ) -> limits.SettleUsageResponse:
        self.began += 1
        if self.fail_with is not None:
            await context.abort(self.fail_with, "as the test says")
        for each in request.settlements:
            self.settled[each.request_id] = each.tokens if each.HasField("tokens") else None
        for total in request.totals:
            name = _name(total)
            known = self.totals.get(name)
            if known is None or total.version > known.version:
                self.totals[name] = total
        self.calls.append(request)
        return limits.SettleUsageResponse()

    async def GetLimiterStatus(  # noqa: N802
        self, request: Any, context: Any
    ) -> limits.LimiterStatus:
        return limits.LimiterStatus(mode=limits.LIMITER_MODE_REDIS)

    def total(
        self, period: int = limits.LIMIT_PERIOD_DAY, start: str = DAY, **scope: str
    ) -> limits.ScopeTotal:
        named = limits.ScopeTotal(
            scope=limits.LimitScope(**scope),
            period=period,  # type: ignore[arg-type]
            start_date=start,
        )
        return self.totals[_name(named)]

    @contextlib.asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[str]:
        server = grpc.aio.server()
        limits_grpc.add_LimitServiceServicer_to_server(self, server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(0)


def _name(total: limits.ScopeTotal) -> bytes:
    named = limits.ScopeTotal(scope=total.scope, period=total.period, start_date=total.start_date)
    return named.SerializeToString(deterministic=True)
