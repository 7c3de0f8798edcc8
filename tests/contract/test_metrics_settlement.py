"""What calls took reaches auth: at once, once written, and whoever is killed when."""

import asyncio
import contextlib
import datetime as dt
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa

from contract.metrics_world import Auth, Service, event, running, settings, wipe
from infermesh.auth.v1 import limit_service_pb2 as limits
from infermesh.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from infermesh.metrics.v1 import usage_service_pb2 as pb
from services.kit import database
from services.kit.server import serving
from services.metrics import settlement
from services.metrics.app import make_app
from services.metrics.convert import usage_from_proto
from services.metrics.settlement import Settler
from services.metrics.store import Ledger
from support import becomes_within, free_port

_KILLS = 5


@pytest.fixture
async def auth() -> AsyncIterator[Auth]:
    yield Auth()


@pytest.fixture
async def address(auth: Auth) -> AsyncIterator[str]:
    async with auth.listening() as address:
        yield address


@pytest.fixture
async def service(postgres_url: str, address: str, tmp_path: Path) -> AsyncIterator[Service]:
    await wipe(postgres_url)
    async with running(settings(postgres_url, tmp_path, address)) as made:
        yield made


async def _until(condition: object, limit_s: float = 30.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def _waiting(url: str) -> int:
    engine = database.make_engine(url)
    async with engine.connect() as connection:
        count = await connection.scalar(sa.text("SELECT count(*) FROM metrics.unsettled"))
    await engine.dispose()
    return int(count or 0)


async def _until_none_waits(url: str) -> None:
    async with asyncio.timeout(30):
        while await _waiting(url):
            await asyncio.sleep(0.05)


async def test_a_call_is_settled_with_its_tokens_and_all_its_totals(
    service: Service, auth: Auth, postgres_url: str
) -> None:
    await service.set_price("m", "1", "1")
    await service.record(event("seen", requested_model="alias"))
    await service.record(event("a", reserved=True, requested_model="alias"))
    await _until(lambda: "a" in auth.settled)
    assert auth.settled == {"a": 34}
    # What other calls took is in the totals, settled or not.
    assert auth.total(tenant="acme").tokens == 68
    assert auth.total(tenant="acme", project="web").usd == "0.000068"
    assert auth.total(key_id="key-1", model="alias").version == 2
    month = auth.total(limits.LIMIT_PERIOD_MONTH, "2026-11-01", key_id="key-1")
    assert (month.tokens, month.usd) == (68, "0.000068")
    assert len(auth.totals) == 8
    await _until_none_waits(postgres_url)


async def test_a_call_is_settled_at_once(service: Service, auth: Auth) -> None:
    numbers = itertools.count()

    async def settled() -> float:
        name = f"at-once-{next(numbers)}"
        start = time.monotonic()
        await service.record(event(name, reserved=True))
        await _until(lambda: name in auth.settled)
        return time.monotonic() - start

    await becomes_within(0.5, settled)


async def test_a_call_whose_tokens_are_unknown_is_settled_without(
    service: Service, auth: Auth
) -> None:
    await service.record(event("a", reserved=True, outcome=pb.OUTCOME_LOST, prompt_tokens=None))
    await _until(lambda: "a" in auth.settled)
    assert auth.settled == {"a": None}
    # The attempt that answered tells it again, with what is known now.
    await service.record(event("a", 2, reserved=True))
    await _until(lambda: auth.settled["a"] is not None)
    assert auth.settled == {"a": 34}
    assert auth.total(tenant="acme").tokens == 34


async def test_nothing_waits_of_calls_without_limits_nor_where_there_is_no_auth(
    service: Service, auth: Auth, postgres_url: str, tmp_path: Path
) -> None:
    await service.record(event("a"))
    async with running(settings(postgres_url, tmp_path / "alone")) as alone:
        await alone.record(event("b", reserved=True))
        assert await _waiting(postgres_url) == 0
    assert auth.calls == []


async def test_a_replay_settles_nothing_again(service: Service, auth: Auth) -> None:
    await service.record(event("a", reserved=True))
    await _until(lambda: auth.calls)
    await service.record(event("a", reserved=True))
    await service.record(event("b", reserved=True))
    await _until(lambda: "b" in auth.settled)
    assert [[s.request_id for s in call.settlements] for call in auth.calls] == [["a"], ["b"]]


async def test_usage_waits_for_auth_and_is_told_in_batches(
    postgres_url: str, auth: Auth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlement, "MAX_BATCH", 40)
    await wipe(postgres_url)
    port = free_port()
    made = settings(postgres_url, tmp_path, f"127.0.0.1:{port}")
    async with running(made) as service:
        await service.record(*(event(f"r{n}", reserved=True) for n in range(100)))
        await asyncio.sleep(0.3)
        assert await _waiting(postgres_url) == 100
        auth.fail_with = grpc.StatusCode.UNAVAILABLE
        async with auth.listening(port):
            await _until(lambda: auth.began)
            assert await _waiting(postgres_url) == 100
            auth.fail_with = None
            await _until(lambda: len(auth.settled) == 100)
        assert [len(call.settlements) for call in auth.calls] == [40, 40, 20]
    assert auth.total(tenant="acme").tokens == 3400


async def test_one_settlement_that_auth_refuses_holds_up_no_other(postgres_url: str) -> None:
    await wipe(postgres_url)
    engine = database.make_engine(postgres_url)
    settled: set[str] = set()

    async def settle(request: limits.SettleUsageRequest) -> None:
        ids = {each.request_id for each in request.settlements}
        if "r3" in ids:
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.INVALID_ARGUMENT, nothing, nothing)
        settled.update(ids)

    settler = Settler(engine, settle)
    ledger = Ledger(engine, settler.wake, dt.date.today)
    events = [event(f"r{n}", reserved=True) for n in range(9)]
    await ledger.record([usage_from_proto(each, 0) for each in events])
    task = asyncio.create_task(settler.run())
    await _until(lambda: len(settled) == 8)
    await _until_none_waits(postgres_url)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await engine.dispose()
    assert "r3" not in settled


async def test_how_auth_limits_is_in_the_metrics(
    address: str, postgres_url: str, tmp_path: Path
) -> None:
    made = settings(postgres_url, tmp_path, address)
    async with (
        serving(made, make_app(made)) as listening,
        grpc.aio.insecure_channel(listening) as channel,
    ):
        stub = metrics_service_pb2_grpc.MetricsServiceStub(channel)
        body = await stub.GetExposition(metrics_service_pb2.GetExpositionRequest())
        assert 'infermesh_limiter_mode{mode="redis",part="auth"} 1.0' in body.data.decode()


class _Killed:
    """The service as a process of its own, to be killed."""

    def __init__(self, url: str, state_dir: Path, auth: str) -> None:
        self.port = free_port()
        self._env = {
            **os.environ,
            "INFERMESH_LISTEN": f"127.0.0.1:{self.port}",
            "INFERMESH_DATABASE_URL": url,
            "INFERMESH_STATE_DIR": str(state_dir),
            "INFERMESH_AUTH_ADDRESS": auth,
        }
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.metrics"),
            env=self._env,
            stderr=asyncio.subprocess.DEVNULL,
        )

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()


async def test_killed_in_the_middle_nothing_is_lost(
    postgres_url: str, auth: Auth, address: str, tmp_path: Path
) -> None:
    await wipe(postgres_url)
    rng = random.Random(11)
    killed = _Killed(postgres_url, tmp_path / "killed", address)
    await killed.start()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(killed.kill)
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(
                f"127.0.0.1:{killed.port}",
                options=(
                    ("grpc.initial_reconnect_backoff_ms", 50),
                    ("grpc.min_reconnect_backoff_ms", 50),
                    ("grpc.max_reconnect_backoff_ms", 50),
                ),
            )
        )
        service = Service(channel)
        numbers = iter(range(100_000))
        recorded: list[str] = []

        async def send() -> None:
            """Brings batches as a node's spool does: until each is answered."""
            while not breaker.done():
                batch = [
                    event(f"r{next(numbers)}", reserved=True, key_id=f"key-{n % 3}")
                    for n in range(rng.randrange(1, 12))
                ]
                while True:
                    try:
                        await service.record(*batch)
                        break
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.02)
                recorded.extend(each.request_id for each in batch)
                await asyncio.sleep(0.01)

        async def break_it() -> None:
            for _ in range(_KILLS):
                began = auth.began
                # From one call to auth to the next is where all that can be lost may be.
                await _until(lambda began=began: auth.began > began)
                await asyncio.sleep(rng.random() * 0.02)
                await killed.kill()
                await killed.start()

        breaker = asyncio.create_task(break_it())
        async with asyncio.timeout(100):
            await asyncio.gather(breaker, send(), send())
        await killed.kill()
        # What is left is settled by whoever comes next.
        async with running(settings(postgres_url, tmp_path / "next", address)) as last:
            await _until(lambda: len(auth.settled) >= len(recorded))
            while await _waiting(postgres_url):
                await asyncio.sleep(0.05)
            for scope in ({"tenant": "acme"}, {"key_id": "key-1"}, {"key_id": "key-2"}):
                truth = await last.total(**scope)
                assert auth.total(**scope) == truth
            assert (await last.total(tenant="acme")).tokens == 34 * len(recorded)
    assert set(auth.settled) == set(recorded)
    assert set(auth.settled.values()) == {34}
    assert Decimal(auth.total(tenant="acme").usd) == 0
