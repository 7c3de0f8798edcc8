"""Every RPC of the metrics service over an in-process server and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from infermesh.metrics.v1 import metrics_service_pb2 as metrics_pb
from infermesh.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from infermesh.metrics.v1 import usage_service_pb2 as pb
from infermesh.metrics.v1 import usage_service_pb2_grpc as usage_grpc
from services.kit import database
from services.kit.errors import from_rpc_error
from services.kit.server import serving
from services.kit.usage_spool import Send, open_spool
from services.metrics.app import make_app
from services.metrics.settings import MetricsSettings
from services.metrics.tables import metadata

DAY_S = 86_400


@pytest.fixture
async def address(postgres_url: str) -> AsyncIterator[str]:
    settings = MetricsSettings(
        database_url=postgres_url,
        parts="gone=127.0.0.1:9",  # type: ignore[arg-type]
        drain_s=0,
    )
    async with serving(settings, make_app(settings)) as listening:
        engine = database.make_engine(postgres_url)
        async with engine.begin() as connection:
            tables = ", ".join(str(table) for table in metadata.sorted_tables)
            await connection.execute(sa.text(f"TRUNCATE {tables}"))
        await engine.dispose()
        yield listening


@pytest.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address) as opened:
        yield opened


@pytest.fixture
def usage(channel: grpc.aio.Channel) -> usage_grpc.UsageServiceAsyncStub:
    return usage_grpc.UsageServiceStub(channel)  # type: ignore[return-value]


@pytest.fixture
def metrics(channel: grpc.aio.Channel) -> metrics_grpc.MetricsServiceAsyncStub:
    return metrics_grpc.MetricsServiceStub(channel)  # type: ignore[return-value]


def event(request_id: str, attempt: int = 1, **changed: object) -> pb.UsageEvent:
    fields: dict[str, object] = {
        "tenant": "acme",
        "project": "default",
        "key_id": "key-1",
        "model": "m",
        "requested_model": "m",
        "node_id": "node-1",
        "operation": pb.OPERATION_CHAT,
        "outcome": pb.OUTCOME_OK,
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "start_time": Timestamp(seconds=100 * DAY_S + 5),
        "duration": Duration(nanos=20_000_000),
    }
    fields.update(changed)
    return pb.UsageEvent(request_id=request_id, attempt=attempt, **fields)  # type: ignore[arg-type]


async def record(usage: usage_grpc.UsageServiceAsyncStub, *events: pb.UsageEvent) -> int:
    return (await usage.RecordUsage(pb.RecordUsageRequest(events=events))).recorded_count


async def ledger(usage: usage_grpc.UsageServiceAsyncStub) -> list[pb.UsageEvent]:
    return list((await usage.ListUsageEvents(pb.ListUsageEventsRequest())).events)


async def totals(usage: usage_grpc.UsageServiceAsyncStub, **wanted: object) -> list[pb.UsageTotal]:
    request = pb.GetUsageTotalsRequest(**wanted)  # type: ignore[arg-type]
    return list((await usage.GetUsageTotals(request)).totals)


def total(**changed: object) -> pb.UsageTotal:
    fields: dict[str, object] = {
        "tenant": "acme",
        "project": "default",
        "key_id": "key-1",
        "model": "m",
        # Nothing has a price here.
        "unpriced_count": changed.get("request_count", 0),
    }
    return pb.UsageTotal(**{**fields, **changed})  # type: ignore[arg-type]


async def test_an_event_is_kept_once(usage: usage_grpc.UsageServiceAsyncStub) -> None:
    assert await record(usage, event("a"), event("b"), event("a")) == 2
    assert await record(usage, event("a"), event("c")) == 1
    assert await ledger(usage) == [event("c"), event("b"), event("a")]
    assert await totals(usage) == [total(request_count=3, prompt_tokens=9, completion_tokens=12)]


async def test_the_higher_attempt_takes_the_place(
    usage: usage_grpc.UsageServiceAsyncStub,
) -> None:
    lost = event("a", outcome=pb.OUTCOME_LOST, prompt_tokens=None, completion_tokens=None)
    assert await record(usage, lost) == 1
    assert await totals(usage) == [total(request_count=1, failed_count=1, unknown_count=1)]
    again = event("a", 2, node_id="node-2", cached_tokens=1)
    assert await record(usage, again) == 1
    assert await record(usage, lost, again) == 0
    assert await ledger(usage) == [again]
    assert await totals(usage) == [
        total(request_count=1, prompt_tokens=3, completion_tokens=4, cached_tokens=1)
    ]


async def test_unknown_numbers_stay_unset(usage: usage_grpc.UsageServiceAsyncStub) -> None:
    bare = pb.UsageEvent(
        request_id="a",
        attempt=1,
        outcome=pb.OUTCOME_LOST,
        start_time=Timestamp(seconds=1),
        project="default",
    )
    await record(usage, bare)
    assert await ledger(usage) == [bare]


async def test_the_ledger_is_paged_newest_first(usage: usage_grpc.UsageServiceAsyncStub) -> None:
    # Several start at the same time, so that the id decides.
    events = [event(f"{n:02}", start_time=Timestamp(seconds=1000 + n // 3)) for n in range(10)]
    await record(usage, *events)
    seen: list[pb.UsageEvent] = []
    request = pb.ListUsageEventsRequest(page_size=4)
    for _ in range(3):
        page = await usage.ListUsageEvents(request)
        seen += page.events
        # What comes in between moves no page.
        await record(usage, event(f"new-{len(seen)}"))
        request.page_token = page.next_page_token
    assert seen == events[::-1]
    assert request.page_token == ""


async def test_the_ledger_is_searched_by_request_and_key(
    usage: usage_grpc.UsageServiceAsyncStub,
) -> None:
    await record(usage, event("a"), event("b", key_id="key-2"))
    by_id = await usage.ListUsageEvents(pb.ListUsageEventsRequest(request_id="a"))
    by_key = await usage.ListUsageEvents(pb.ListUsageEventsRequest(key_id="key-2"))
    assert [e.request_id for e in by_id.events] == ["a"]
    assert [e.request_id for e in by_key.events] == ["b"]


async def test_totals_are_by_key_and_model_over_whole_days(
    usage: usage_grpc.UsageServiceAsyncStub,
) -> None:
    await record(
        usage,
        event("a"),
        event("b", start_time=Timestamp(seconds=101 * DAY_S)),
        event("c", start_time=Timestamp(seconds=102 * DAY_S - 1), model="n"),
        event("d", start_time=Timestamp(seconds=102 * DAY_S), key_id="key-2"),
    )
    sums = {"request_count": 1, "prompt_tokens": 3, "completion_tokens": 4}
    double = {name: 2 * value for name, value in sums.items()}
    assert await totals(usage) == [
        total(**double),
        total(**sums, model="n"),
        total(**sums, key_id="key-2"),
    ]
    from_noon = Timestamp(seconds=101 * DAY_S + DAY_S // 2)
    to_noon = Timestamp(seconds=102 * DAY_S + DAY_S // 2)
    assert await totals(usage, start_time=from_noon, end_time=to_noon) == [
        total(**sums),
        total(**sums, model="n"),
    ]
    assert await totals(usage, key_id="key-2") == [total(**sums, key_id="key-2")]
    assert await totals(usage, model="n") == [total(**sums, model="n")]


async def test_two_replicas_write_the_same_events_at_once(
    usage: usage_grpc.UsageServiceAsyncStub, postgres_url: str
) -> None:
    settings = MetricsSettings(database_url=postgres_url, drain_s=0)
    batches = [
        [event(f"r{n}", attempt, key_id=f"key-{n % 3}") for n in order]
        for attempt in (1, 2, 3)
        for order in (range(100), range(99, -1, -1))
    ]
    async with (
        serving(settings, make_app(settings)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        other = usage_grpc.UsageServiceStub(channel)
        counts = await asyncio.gather(
            *(record(stub, *batch) for batch in batches for stub in (usage, other))
        )
    assert 100 <= sum(counts) <= 300
    kept = await ledger(usage)
    assert len(kept) == 100
    assert {e.attempt for e in kept} == {3}
    sums = await totals(usage)
    assert sum(s.request_count for s in sums) == 100
    assert sum(s.prompt_tokens for s in sums) == 300


@pytest.mark.parametrize(
    ("request_message", "param"),
    [
        (pb.RecordUsageRequest(), "events"),
        (pb.RecordUsageRequest(events=[event("")]), "events[0].request_id"),
        (pb.RecordUsageRequest(events=[event("a"), event("a\0")]), "events[1].request_id"),
        (pb.RecordUsageRequest(events=[event("a", outcome=0)]), "events[0].outcome"),
    ],
)
async def test_an_event_that_cannot_be_kept_is_refused(
    usage: usage_grpc.UsageServiceAsyncStub, request_message: pb.RecordUsageRequest, param: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await usage.RecordUsage(request_message)
    error = from_rpc_error(caught.value)
    assert error is not None
    assert (error.reason_name, error.param) == ("INVALID_ARGUMENT", param)
    assert await ledger(usage) == []


async def test_a_wrong_page_token_is_refused(usage: usage_grpc.UsageServiceAsyncStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await usage.ListUsageEvents(pb.ListUsageEventsRequest(page_token="nonsense"))
    error = from_rpc_error(caught.value)
    assert error is not None
    assert (error.reason_name, error.param) == ("INVALID_ARGUMENT", "page_token")


class _Cable:
    """Stands between the service and PostgreSQL, to be pulled and put back."""

    def __init__(self, url: sa.URL) -> None:
        self._url = url
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def plug(self) -> str:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self._url.set(host="127.0.0.1", port=self._port).render_as_string(
            hide_password=False
        )

    def pull(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection(self._url.host, self._url.port)
        self._writers |= {writer, other_writer}
        await asyncio.gather(
            self._copy(reader, other_writer),
            self._copy(other_reader, writer),
            return_exceptions=True,
        )
        self._writers -= {writer, other_writer}

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


async def test_without_postgresql_the_sender_is_told_to_wait(
    usage: usage_grpc.UsageServiceAsyncStub, postgres_url: str
) -> None:
    cable = _Cable(sa.make_url(postgres_url))
    settings = MetricsSettings(database_url=await cable.plug(), drain_s=0)
    async with (
        serving(settings, make_app(settings)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = usage_grpc.UsageServiceStub(channel)
        assert await record(stub, event("a")) == 1
        cable.pull()
        for call in (
            stub.RecordUsage(pb.RecordUsageRequest(events=[event("b")])),
            stub.ListUsageEvents(pb.ListUsageEventsRequest()),
            stub.GetUsageTotals(pb.GetUsageTotalsRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            error = from_rpc_error(caught.value)
            assert error is not None
            assert error.reason_name == "STORE_UNAVAILABLE"
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
        await cable.plug()
        assert await record(stub, event("a"), event("b")) == 1
        cable.pull()


async def test_a_spool_brings_each_event_once_across_a_restart(
    usage: usage_grpc.UsageServiceAsyncStub, postgres_url: str, tmp_path: Path
) -> None:
    settings = MetricsSettings(database_url=postgres_url, drain_s=0)
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(_sender(settings))
        current = first
        lost_answers = 1

        async def send(request: pb.RecordUsageRequest) -> None:
            nonlocal lost_answers
            await current(request)
            if lost_answers:
                lost_answers -= 1
                raise ConnectionResetError("the answer is lost")

        async with open_spool(tmp_path, send) as spool:
            for n in range(60):
                spool.begin(event(f"spool-{n}"))
                spool.finish(event(f"spool-{n}"))
            await asyncio.sleep(0.3)
            await stack.aclose()
            for n in range(60, 120):
                spool.begin(event(f"spool-{n}"))
                spool.finish(event(f"spool-{n}"))
            await asyncio.sleep(0.3)
            current = await stack.enter_async_context(_sender(settings))
            async with asyncio.timeout(40):
                # The other replica's database is what is watched: nothing here can wake the test.
                while (await totals(usage))[0].request_count < 120:
                    await asyncio.sleep(0.05)
    request = pb.ListUsageEventsRequest(page_size=1000)
    ids = [e.request_id for e in (await usage.ListUsageEvents(request)).events]
    assert sorted(ids) == sorted(f"spool-{n}" for n in range(120))
    assert await totals(usage) == [
        total(request_count=120, prompt_tokens=360, completion_tokens=480)
    ]


@contextlib.asynccontextmanager
async def _sender(settings: MetricsSettings) -> AsyncIterator[Send]:
    async with (
        serving(settings, make_app(settings)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield usage_grpc.UsageServiceStub(channel).RecordUsage


async def test_only_new_events_are_counted_in_the_metrics(
    usage: usage_grpc.UsageServiceAsyncStub, metrics: metrics_grpc.MetricsServiceAsyncStub
) -> None:
    await record(usage, event("a"), event("b"))
    await record(usage, event("b"), event("c"))
    body = await metrics.GetExposition(metrics_pb.GetExpositionRequest())
    text = body.data.decode()
    assert body.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert (
        'infermesh_requests_total{model="m",node="node-1",operation="chat",outcome="ok"} 3.0'
        in text
    )
    assert 'infermesh_tokens_total{model="m",type="completion"} 12.0' in text
    assert 'infermesh_part_up{part="gone"} 0.0' in text


async def test_the_health_of_the_mesh(postgres_url: str, address: str) -> None:
    settings = MetricsSettings(
        database_url=postgres_url,
        parts=f"here={address},gone=127.0.0.1:9",  # type: ignore[arg-type]
        drain_s=0,
    )
    async with (
        serving(settings, make_app(settings)) as asked,
        grpc.aio.insecure_channel(asked) as channel,
    ):
        stub = metrics_grpc.MetricsServiceStub(channel)
        answer = await stub.GetMeshHealth(metrics_pb.GetMeshHealthRequest())
    gone, here = answer.services
    assert (here.name, here.serving, here.detail) == ("here", True, "SERVING")
    assert 0 < here.latency_ms < 20_000
    assert (gone.name, gone.serving) == ("gone", False)
    assert gone.detail
    assert not gone.HasField("latency_ms")
