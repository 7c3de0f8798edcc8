import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from infermesh.metrics.v1 import usage_service_pb2 as pb
from services.kit import usage_spool
from services.kit.usage_spool import UsageSpool, open_spool


def _event(number: int, *, outcome: int = pb.OUTCOME_OK, attempt: int = 1) -> pb.UsageEvent:
    return pb.UsageEvent(
        request_id=f"request-{number}",
        attempt=attempt,
        tenant="acme",
        key_id="key",
        model="m",
        node_id="node",
        operation=pb.OPERATION_CHAT,
        outcome=outcome,
        prompt_tokens=number,
        start_time=Timestamp(seconds=1),
    )


class _Ledger:
    """Collects what is sent; fails while told to."""

    def __init__(self) -> None:
        self.events: list[pb.UsageEvent] = []
        self.batches: list[int] = []
        self.failure: Callable[[pb.RecordUsageRequest], Exception | None] = lambda request: None
        self.tries = 0
        self.failed_twice = asyncio.Event()
        self.reached = asyncio.Event()
        self.target = 0

    async def send(self, request: pb.RecordUsageRequest) -> None:
        self.tries += 1
        if failure := self.failure(request):
            if self.tries >= 2:
                self.failed_twice.set()
            raise failure
        self.batches.append(len(request.events))
        self.events.extend(request.events)
        if len(self.events) >= self.target:
            self.reached.set()

    async def got(self, count: int) -> list[pb.UsageEvent]:
        self.target = count
        self.reached.clear()
        if len(self.events) < count:
            async with asyncio.timeout(30):
                await self.reached.wait()
        return self.events

    def ids(self) -> list[str]:
        return [event.request_id for event in self.events]


def _status(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "no")


def _segments(directory: Path) -> int:
    return len(list(directory.glob("*.seg")))


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_BATCH_DELAY_S", "_FIRST_BACKOFF_S", "_MAX_BACKOFF_S"):
        monkeypatch.setattr(usage_spool, name, 0.001)


async def test_finished_events_arrive_in_batches(tmp_path: Path) -> None:
    ledger = _Ledger()
    async with open_spool(tmp_path, ledger.send) as spool:
        for number in range(1200):
            spool.begin(_event(number, outcome=0))
            spool.finish(_event(number))
        events = await ledger.got(1200)
    assert events == [_event(number) for number in range(1200)]
    assert ledger.batches == [500, 500, 200]


async def test_acked_events_are_not_sent_again(tmp_path: Path) -> None:
    ledger = _Ledger()
    for number in range(3):
        async with open_spool(tmp_path, ledger.send) as spool:
            spool.finish(_event(number))
    assert ledger.ids() == ["request-0", "request-1", "request-2"]
    assert _segments(tmp_path) == 1


async def test_what_waits_while_the_ledger_is_down_is_sent_later(tmp_path: Path) -> None:
    ledger = _Ledger()
    ledger.failure = lambda request: _status(grpc.StatusCode.UNAVAILABLE)
    async with open_spool(tmp_path, ledger.send) as spool:
        spool.finish(_event(1))
        async with asyncio.timeout(30):
            await ledger.failed_twice.wait()
        ledger.failure = lambda request: None
        assert (await ledger.got(1))[0] == _event(1)


async def test_what_cannot_be_sent_before_the_exit_waits_for_the_next_process(
    tmp_path: Path,
) -> None:
    ledger = _Ledger()
    ledger.failure = lambda request: _status(grpc.StatusCode.UNAVAILABLE)
    async with open_spool(tmp_path, ledger.send) as spool:
        spool.finish(_event(1))
    ledger.failure = lambda request: None
    async with open_spool(tmp_path, ledger.send):
        await ledger.got(1)
    assert ledger.ids() == ["request-1"]


async def test_a_begun_request_is_lost_when_the_process_ends(tmp_path: Path) -> None:
    ledger = _Ledger()
    spool = UsageSpool(tmp_path, ledger.send)
    spool.begin(_event(1, outcome=0))
    spool.begin(_event(2, outcome=0))
    spool.begin(_event(2, outcome=0, attempt=2))
    spool.finish(_event(2))
    spool._log.close()  # as the kernel does for a process that is killed

    async with open_spool(tmp_path, ledger.send):
        await ledger.got(3)
    by_key = {(event.request_id, event.attempt): event for event in ledger.events}
    assert set(by_key) == {("request-1", 1), ("request-2", 1), ("request-2", 2)}
    assert by_key["request-2", 1] == _event(2)
    for key in (("request-1", 1), ("request-2", 2)):
        assert by_key[key].outcome == pb.OUTCOME_LOST
        assert not by_key[key].HasField("prompt_tokens")
        assert by_key[key].tenant == "acme"


async def test_a_full_segment_goes_when_its_events_are_acked(tmp_path: Path) -> None:
    ledger = _Ledger()
    spool = UsageSpool(tmp_path, ledger.send, segment_bytes=500)
    spool.begin(_event(0, outcome=0))
    for number in range(1, 50):
        spool.begin(_event(number, outcome=0))
        spool.finish(_event(number))
    assert _segments(tmp_path) > 5
    await spool._send_waiting()
    assert _segments(tmp_path) == 1
    spool._log.close()

    async with open_spool(tmp_path, ledger.send):
        await ledger.got(50)
    # The request that ran all the time is carried from segment to segment, and lost once.
    assert sorted(ledger.ids()) == sorted(f"request-{number}" for number in range(50))
    assert ledger.events[-1].outcome == pb.OUTCOME_LOST


async def test_an_event_that_the_ledger_refuses_does_not_hold_up_others(tmp_path: Path) -> None:
    ledger = _Ledger()

    def refuse(request: pb.RecordUsageRequest) -> Exception | None:
        if any(event.request_id in ("request-3", "request-7") for event in request.events):
            return _status(grpc.StatusCode.INVALID_ARGUMENT)
        return None

    ledger.failure = refuse
    async with open_spool(tmp_path, ledger.send) as spool:
        for number in range(10):
            spool.finish(_event(number))
        await ledger.got(8)
    assert ledger.ids() == [f"request-{n}" for n in range(10) if n not in (3, 7)]
    rejected = (tmp_path / "rejected").read_text()
    assert rejected.count("request_id") == 2
    assert "request-3" in rejected

    async with open_spool(tmp_path, ledger.send):
        pass
    assert len(ledger.events) == 8


@pytest.mark.parametrize("length", [0, 1, 40, 127, 128, 300, 16_300, 16_384, 60_000])
async def test_events_of_any_length_arrive_as_they_are(tmp_path: Path, length: int) -> None:
    ledger = _Ledger()
    ledger.target = 2
    long = _event(1)
    long.requested_model = "m" * length
    async with open_spool(tmp_path, ledger.send) as spool:
        for event in (long, _event(2)):
            spool.begin(event)
            spool.finish(event)
        await asyncio.wait_for(ledger.reached.wait(), 30)
    assert ledger.events == [long, _event(2)]
