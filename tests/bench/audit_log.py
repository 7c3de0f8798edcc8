"""Measures the audit log: a check of a million events, and what one inference event costs a node.

Usage: `python tests/bench/audit_log.py [EVENTS]` (a few minutes for a million). PostgreSQL is real;
the events are put there by COPY, since appending them one batch after the other takes longer.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import asyncpg
import orjson
import psutil
import sqlalchemy as sa

import support
from infermesh.auth.v1 import audit_service_pb2 as pb
from services.auth.audit_store import chain, events, metadata
from services.auth.audit_verify import verify
from services.cli import embedded
from services.cli.supervisor import Supervisor
from services.kit import audit_chain
from services.kit.audit_bodies import redacted
from services.kit.audit_events import OutcomeRecorder
from services.kit.audit_inference import InferenceAudit
from services.kit.audit_spool import AuditSpool, open_log
from services.kit.caller import Caller
from services.kit.database import create_tables, make_engine

_START = datetime(2026, 1, 1, tzinfo=UTC)
_COLUMNS = [column.name for column in events.columns]


def _rows(count: int) -> Iterator[tuple[Any, ...]]:
    """Yields rows of a good chain: half of them changes with half a kilobyte before and after."""
    state = orjson.dumps({"name": "a-policy", "labels": {f"label{n}": "value" for n in range(25)}})
    last = audit_chain.START
    for number in range(1, count + 1):
        event = pb.AuditEvent(
            sequence=number,
            event_id=f"{number:032x}",
            kind=pb.AUDIT_KIND_OUTCOME if number % 2 else pb.AUDIT_KIND_CALL,
            key_id=f"key_{number % 1000:012}",
            tenant=f"tenant-{number % 100}",
            role="operator",
            source="192.0.2.7",
            rpc="/infermesh.routing.v1.PolicyService/UpdatePolicy",
            resource="a-policy",
            request_id=f"{number:036x}",
            outcome="OK",
            before=state.decode() if number % 2 else "",
            after=state.decode() if number % 2 else "",
            count=1,
        )
        when = _START + timedelta(seconds=number)
        event.time.FromDatetime(when)
        last = audit_chain.link(last, event)
        special = {"hash": last, "time": when}
        yield tuple(special.get(name) or getattr(event, name) for name in _COLUMNS)


async def _fill(url: str, count: int) -> None:
    engine = make_engine(url)
    await create_tables(engine, metadata)
    dsn = sa.make_url(url).set(drivername="postgresql").render_as_string(False)
    connection = await asyncpg.connect(dsn)
    await connection.copy_records_to_table(
        "audit_events", schema_name="auth", columns=_COLUMNS, records=_rows(count)
    )
    head = await connection.fetchval(
        "SELECT hash FROM auth.audit_events WHERE sequence = $1", count
    )
    await connection.execute("ANALYZE auth.audit_events")
    await connection.close()
    async with engine.begin() as ends:
        await ends.execute(
            sa.insert(chain).values(
                id=1,
                base_sequence=0,
                base_hash=audit_chain.START,
                head_sequence=count,
                head_hash=head,
            )
        )
    await engine.dispose()


async def _check(url: str) -> None:
    engine = make_engine(url)
    process = psutil.Process()
    before = peak = process.memory_info().rss
    began = time.perf_counter()
    sequence, hash_, checked, is_complete = 0, audit_chain.START, 0, False
    while not is_complete:
        answer = await verify(engine, sequence, hash_)
        assert not answer.HasField("fault"), answer
        sequence, hash_ = answer.next_sequence, bytes.fromhex(answer.next_hash)
        checked, is_complete = checked + answer.checked_count, answer.complete
        peak = max(peak, process.memory_info().rss)
    took = time.perf_counter() - began
    await engine.dispose()
    print(
        f"{checked:,} events checked in {took:.0f} s ({took / checked * 1e6:.0f} us each); "
        f"memory grew by {(peak - before) / 2**20:.0f} MiB"
    )


def _inference(folder: Path) -> None:
    caller = Caller(request_id="r" * 36, attempt=1, tenant="t", key_id="key_a", model="m")

    async def send(_: object) -> None:
        return None

    spool = AuditSpool(open_log(folder), send)
    audit = InferenceAudit(OutcomeRecorder(spool.append), "node-1")
    for size in (1_000, 10_000, 100_000):
        text = "word " * (size // 5)
        fields = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 9}
        rounds = 500
        for name, act in (
            ("form", lambda fields=fields: redacted(fields)),
            ("event", lambda fields=fields: audit.note(caller, "chat", "m", fields)),
        ):
            times = []
            for _ in range(rounds):
                began = time.perf_counter_ns()
                act()
                times.append(time.perf_counter_ns() - began)
            print(f"prompt of {size:,} characters, {name}: {statistics.median(times) / 1e3:.0f} us")


async def _main(count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="infermesh-audit-") as folder:
        store = embedded.postgres(Path(folder), support.free_port(), Path(folder), durable=False)
        supervisor = Supervisor([store.part])
        try:
            await supervisor.start()
            began = time.perf_counter()
            await _fill(store.url, count)
            print(f"{count:,} events made in {time.perf_counter() - began:.0f} s")
            await _check(store.url)
        finally:
            await supervisor.stop()
        _inference(Path(folder) / "spool")


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
