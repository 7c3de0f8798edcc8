"""Prices, what calls cost, and the sums of that, over an in-process server and PostgreSQL."""

import asyncio
import csv
import datetime as dt
import io
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp

from contract.metrics_world import DAY, MONTH, START_S, Service, event, running, settings, wipe
from infermesh.auth.v1 import limit_service_pb2 as limits
from infermesh.metrics.v1 import price_service_pb2 as prices_pb
from infermesh.metrics.v1 import usage_service_pb2 as pb
from services.kit import database
from services.kit.errors import from_rpc_error
from services.metrics import price_store, sums
from services.metrics.scope_store import ScopeTotals


@pytest.fixture
async def service(postgres_url: str, tmp_path: Path) -> AsyncIterator[Service]:
    await wipe(postgres_url)
    async with running(settings(postgres_url, tmp_path)) as made:
        yield made


async def _refused(call: object) -> tuple[str, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    error = from_rpc_error(caught.value)
    assert error is not None
    return error.reason_name, error.param


async def test_a_price_is_set_read_listed_and_taken_away(service: Service) -> None:
    await service.set_price("b/two", "1.500000", "2")
    first = await service.set_price("a", "0", "999999.999999", "0.000001")
    assert (first.input_usd, first.cached_input_usd, first.output_usd) == (
        *("0", "0.000001"),
        "999999.999999",
    )
    again = await service.set_price("b/two", "1.25", "2")
    assert not again.HasField("cached_input_usd")
    assert await service.prices.GetPrice(prices_pb.GetPriceRequest(model="b/two")) == again
    listed = await service.prices.ListPrices(prices_pb.ListPricesRequest())
    assert list(listed.prices) == [first, again]
    gone = await service.prices.DeletePrice(prices_pb.DeletePriceRequest(model="a"))
    assert gone == first
    for call in (
        service.prices.GetPrice(prices_pb.GetPriceRequest(model="a")),
        service.prices.DeletePrice(prices_pb.DeletePriceRequest(model="a")),
    ):
        assert (await _refused(call))[0] == "NOT_FOUND"


@pytest.mark.parametrize(
    "wrong", ["", "-1", "1e3", ".5", "1.", "1234567", "0.1234567", "NaN", "１"]
)
async def test_what_is_no_price_is_refused(service: Service, wrong: str) -> None:
    reason, param = await _refused(service.set_price("m", wrong, "1"))
    assert (reason, param) == ("INVALID_ARGUMENT", "price.input_usd")


async def test_prices_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price_store, "MAX_PRICES", 2)
    await service.set_price("a", "1", "1")
    await service.set_price("b", "1", "1")
    await service.set_price("b", "2", "1")
    assert (await _refused(service.set_price("c", "1", "1")))[0] == "FAILED_PRECONDITION"
    assert len((await service.prices.ListPrices(prices_pb.ListPricesRequest())).prices) == 2


async def test_a_cost_is_that_of_the_prices_of_when_it_was_written(service: Service) -> None:
    await service.record(event("before"))
    await service.set_price("m", "0.15", "0.6", "0.075")
    await service.record(event("then"), event("other", model="n"))
    await service.set_price("m", "1", "1")
    await service.record(event("later"), event("then"), event("unknown", prompt_tokens=None))
    found = await service.events()
    # 20 x 0.15 + 10 x 0.075 + 4 x 0.6 = 6.15 for a million; then 34 x 1.
    assert found["then"].cost_usd == "0.00000615"
    assert found["later"].cost_usd == "0.000034"
    for unknown in ("before", "other", "unknown"):
        assert not found[unknown].HasField("cost_usd")
    (total,) = await service.sums(pb.USAGE_DIMENSION_TENANT)
    assert total.cost_usd == "0.00004015"
    assert (total.request_count, total.unpriced_count, total.unknown_count) == (5, 3, 1)


async def test_an_alias_costs_what_the_model_that_answers_costs(service: Service) -> None:
    await service.set_price("m", "1", "1")
    await service.set_price("alias", "9", "9")
    await service.record(event("a", requested_model="alias"))
    found = await service.events()
    assert (found["a"].requested_model, found["a"].cost_usd) == ("alias", "0.000034")
    # Limits of a key with a model go by the name that callers send.
    assert (await service.total(key_id="key-1", model="alias")).tokens == 34
    assert (await service.total(key_id="key-1", model="m")).version == 0


async def test_embeddings_that_say_nothing_of_output_have_a_cost(service: Service) -> None:
    await service.set_price("m", "1", "1000")
    silent = {"completion_tokens": None, "cached_tokens": None}
    await service.record(
        event("e", operation=pb.OPERATION_EMBEDDING, **silent), event("c", **silent)
    )
    found = await service.events()
    assert found["e"].cost_usd == "0.00003"
    assert not found["c"].HasField("cost_usd")
    (total,) = await service.sums(pb.USAGE_DIMENSION_KEY)
    assert (total.unknown_count, total.unpriced_count) == (1, 1)


async def test_sums_by_every_dimension(service: Service) -> None:
    await service.set_price("m", "1", "0")
    late = Timestamp(seconds=START_S + 86_400)
    await service.record(
        event("a"),
        event("b", project="", key_id="key-2"),
        event("c", tenant="zeta", key_id="key-3", model="n"),
        event("d", start_time=late),
    )

    async def got(*by: int, **wanted: object) -> list[tuple[str, ...]]:
        return [
            (t.day, t.tenant, t.project, t.key_id, t.model, str(t.request_count), t.cost_usd)
            for t in await service.sums(*by, **wanted)
        ]

    assert await got(pb.USAGE_DIMENSION_TENANT) == [
        ("", "acme", "", "", "", "3", "0.00009"),
        ("", "zeta", "", "", "", "1", ""),
    ]
    assert await got(pb.USAGE_DIMENSION_PROJECT) == [
        ("", "acme", "default", "", "", "1", "0.00003"),
        ("", "acme", "web", "", "", "2", "0.00006"),
        ("", "zeta", "web", "", "", "1", ""),
    ]
    assert await got(pb.USAGE_DIMENSION_DAY, pb.USAGE_DIMENSION_MODEL) == [
        (DAY, "", "", "", "m", "2", "0.00006"),
        (DAY, "", "", "", "n", "1", ""),
        ("2026-11-19", "", "", "", "m", "1", "0.00003"),
    ]
    assert await got() == await got(pb.USAGE_DIMENSION_MODEL, pb.USAGE_DIMENSION_KEY)
    assert [row[3] for row in await got()] == ["key-2", "key-1", "key-3"]
    assert await got(pb.USAGE_DIMENSION_TENANT, project="default") == [
        ("", "acme", "", "", "", "1", "0.00003")
    ]
    assert [row[1] for row in await got(pb.USAGE_DIMENSION_TENANT, tenant="zeta")] == ["zeta"]
    assert [row[5] for row in await got(pb.USAGE_DIMENSION_TENANT, start_time=late)] == ["1"]


async def test_sums_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "MAX_SUMS", 3)
    await service.record(*(event(str(n), key_id=f"k{n}") for n in range(4)))
    call = service.sums(pb.USAGE_DIMENSION_KEY)
    assert await _refused(call) == ("INVALID_ARGUMENT", "group_by")
    assert len(await service.sums(pb.USAGE_DIMENSION_TENANT)) == 1


async def test_the_export_has_the_same_sums(service: Service) -> None:
    await service.set_price("m", "0.000001", "0")
    await service.record(event("a"), event("b", tenant="=cmd()", key_id="+1", cached_tokens=None))
    by = (pb.USAGE_DIMENSION_KEY, pb.USAGE_DIMENSION_DAY)
    call = service.usage.ExportUsage(pb.GetUsageTotalsRequest(group_by=by))
    body = await call
    headers = dict(await call.initial_metadata())
    assert headers["content-disposition"] == 'attachment; filename="usage.csv"'
    assert body.content_type.startswith("text/csv")
    lines = list(csv.reader(io.StringIO(body.data.decode(), newline="")))
    assert lines[0][:4] == ["day", "tenant", "project", "key_id"]
    assert lines[1][:4] == [DAY, "'=cmd()", "web", "'+1"]
    assert lines[2][:4] == [DAY, "acme", "web", "key-1"]
    totals = await service.sums(*by)
    assert [line[-1] for line in lines[1:]] == [t.cost_usd for t in totals] == ["0.00000000003"] * 2


async def test_totals_of_scopes(service: Service) -> None:
    await service.set_price("m", "1", "1")
    scopes: tuple[dict[str, str], ...] = (
        {"tenant": "acme"},
        {"tenant": "acme", "project": "web"},
        {"key_id": "key-1"},
        {"key_id": "key-1", "model": "m"},
    )
    assert (await service.total(tenant="acme")).version == 0
    assert (await service.total(tenant="acme")).usd == "0"
    await service.record(event("a"))
    await service.record(event("b"), event("c", outcome=pb.OUTCOME_LOST, prompt_tokens=None))
    for scope in scopes:
        for period, start in (
            (limits.LIMIT_PERIOD_DAY, DAY),
            (limits.LIMIT_PERIOD_MONTH, MONTH),
        ):
            total = await service.total(period, start, **scope)
            # Of the lost one what was made is known, and its cost is not.
            assert (total.tokens, total.usd, total.version) == (72, "0.000068", 2)
            assert total.scope == limits.LimitScope(**scope)
    await service.record(event("a"), event("b"))
    assert (await service.total(tenant="acme")).version == 2
    await service.record(event("c", 2))
    total = await service.total(tenant="acme")
    assert (total.tokens, total.usd, total.version) == (102, "0.000102", 3)


async def test_scopes_come_back_in_the_order_of_the_request(service: Service) -> None:
    await service.record(event("a"))
    names = [{"key_id": "nobody"}, {"tenant": "acme"}, {"key_id": "nobody"}]
    request = pb.GetScopeTotalsRequest(
        scopes=(
            pb.ScopePeriod(
                scope=limits.LimitScope(**name),
                period=limits.LIMIT_PERIOD_DAY,
                start_date=DAY,
            )
            for name in names
        )
    )
    answer = await service.usage.GetScopeTotals(request)
    assert [each.tokens for each in answer.totals] == [0, 34, 0]
    request.scopes[1].start_date = "2026-02-30"
    call = service.usage.GetScopeTotals(request)
    assert await _refused(call) == ("INVALID_ARGUMENT", "scopes[1].start_date")


async def test_days_are_forgotten_and_do_not_come_back(service: Service, postgres_url: str) -> None:
    await service.record(event("a"))
    engine = database.make_engine(postgres_url)
    totals = ScopeTotals(engine)
    day = dt.date.fromisoformat(DAY)
    assert await totals.sweep(day + dt.timedelta(days=40)) == 0
    assert await totals.sweep(day + dt.timedelta(days=41)) == 4
    await engine.dispose()
    assert (await service.total(tenant="acme")).version == 0
    assert (await service.total(limits.LIMIT_PERIOD_MONTH, MONTH, tenant="acme")).tokens == 34
    long_ago = Timestamp(seconds=START_S - 400 * 86_400)
    await service.record(event("old", start_time=long_ago))
    assert (await service.total(start="2025-10-14", tenant="acme")).version == 0
    month = await service.total(limits.LIMIT_PERIOD_MONTH, "2025-10-01", tenant="acme")
    assert month.tokens == 34


async def test_eight_writers_with_replays_and_replaced_attempts_sum_exactly(
    service: Service, postgres_url: str, tmp_path: Path
) -> None:
    rng = random.Random(7)
    models = {"m": ("0.15", "0.6", "0.075"), "n": ("2.5", "10", None), "free": ("0", "0", None)}
    for model, (input_usd, output_usd, cached_usd) in models.items():
        await service.set_price(model, input_usd, output_usd, cached_usd)

    def attempt(number: int, attempt: int) -> pb.UsageEvent:
        mine = random.Random(number)
        last = attempt == 3
        return event(
            f"r{number}",
            attempt,
            tenant=f"t{mine.randrange(2)}",
            project=mine.choice(["", "web"]),
            key_id=f"key-{mine.randrange(5)}",
            model=mine.choice(["m", "n", "free", "unpriced"]),
            requested_model=mine.choice(["", "alias"]),
            # An attempt that fails knows no tokens; some start on the day before.
            outcome=pb.OUTCOME_OK if last else pb.OUTCOME_FAILED,
            prompt_tokens=mine.randrange(100_000) if last or number % 3 else None,
            completion_tokens=mine.randrange(1000) * attempt,
            cached_tokens=mine.randrange(50) if number % 5 else None,
            start_time=Timestamp(seconds=START_S - (0 if last else 86_400 * (number % 2))),
        )

    events = [attempt(n, a) for n in range(400) for a in (1, 2, 3) for _ in range(2)]
    rng.shuffle(events)
    batches = [events[start : start + 30] for start in range(0, len(events), 30)]
    async with running(settings(postgres_url, tmp_path / "other")) as other:

        async def write(number: int) -> None:
            for batch in batches[number::8]:
                await (service if number % 2 else other).record(*batch)

        await asyncio.gather(*map(write, range(8)))

    kept = await service.events()
    assert {each.attempt for each in kept.values()} == {3}
    assert len(kept) == 400
    by_scope: dict[tuple[str, ...], tuple[int, Decimal]] = defaultdict(lambda: (0, Decimal()))
    for each in kept.values():
        tokens = each.prompt_tokens + each.completion_tokens
        cost = Decimal(each.cost_usd) if each.HasField("cost_usd") else Decimal()
        is_priced = each.model in models and (each.model != "m" or each.HasField("cached_tokens"))
        assert each.HasField("cost_usd") == is_priced
        for scope in (
            (each.tenant, "", "", ""),
            (each.tenant, each.project, "", ""),
            ("", "", each.key_id, ""),
            ("", "", each.key_id, each.requested_model),
        ):
            old = by_scope[scope]
            by_scope[scope] = (old[0] + tokens, old[1] + cost)
    assert any(cost for _, cost in by_scope.values())
    for names, (tokens, cost) in by_scope.items():
        scope = dict(zip(("tenant", "project", "key_id", "model"), names, strict=True))
        for period, start in ((limits.LIMIT_PERIOD_DAY, DAY), (limits.LIMIT_PERIOD_MONTH, MONTH)):
            total = await service.total(period, start, **scope)
            assert (total.tokens, Decimal(total.usd)) == (tokens, cost)
        # What moved to the next day left nothing behind.
        before = await service.total(start="2026-11-17", **scope)
        assert (before.tokens, Decimal(before.usd)) == (0, Decimal())
    sums = await service.sums(pb.USAGE_DIMENSION_TENANT)
    for each in sums:
        tokens, cost = by_scope[(each.tenant, "", "", "")]
        assert each.prompt_tokens + each.completion_tokens == tokens
        assert Decimal(each.cost_usd) == cost
    assert sum(each.request_count for each in sums) == 400
    assert sum(each.failed_count for each in sums) == 0
    assert {each.day for each in await service.sums(pb.USAGE_DIMENSION_DAY)} == {DAY}


async def test_sums_of_an_earlier_version_are_adopted(postgres_url: str, tmp_path: Path) -> None:
    await wipe(postgres_url)
    engine = database.make_engine(postgres_url)
    async with engine.begin() as connection:
        for statement in (
            "ALTER TABLE metrics.usage_daily DROP CONSTRAINT usage_daily_pkey",
            "ALTER TABLE metrics.usage_daily DROP COLUMN project, DROP COLUMN unpriced_count,"
            " DROP COLUMN cost",
            "ALTER TABLE metrics.usage_daily ADD PRIMARY KEY (day, tenant, key_id, model)",
            "INSERT INTO metrics.usage_daily"
            f" VALUES ('{DAY}', 'acme', 'key-1', 'm', 7, 1, 0, 5, 6, 0)",
        ):
            await connection.execute(sa.text(statement))
    await engine.dispose()
    for _ in range(2):
        async with running(settings(postgres_url, tmp_path)) as service:
            (total,) = await service.sums()
            assert (total.project, total.request_count, total.unpriced_count) == ("default", 7, 7)
    async with running(settings(postgres_url, tmp_path)) as service:
        await service.record(event("a"), event("b", project=""))
        assert [(t.project, t.request_count) for t in await service.sums()] == [
            ("default", 8),
            ("web", 1),
        ]
