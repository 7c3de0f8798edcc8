"""The audit log's chain on a real PostgreSQL: what it keeps, and what verify finds."""

import asyncio
import datetime
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from infermesh.auth.v1 import audit_service_pb2 as pb
from services.auth.audit import Recorder
from services.auth.audit_log import retain
from services.auth.audit_store import AuditStore, metadata
from services.auth.audit_verify import verify
from services.kit import audit_chain
from services.kit.audit_spool import AuditSpool, open_log, open_spool
from services.kit.database import create_tables, make_engine
from services.kit.errors import StoreUnavailableError

NOW = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC)


def event(number: int, age_days: float = 0, **fields: object) -> pb.AuditEvent:
    made = pb.AuditEvent(event_id=f"{number:032x}", kind=pb.AUDIT_KIND_CALL, count=1, **fields)
    made.time.FromDatetime(NOW - datetime.timedelta(days=age_days) + datetime.timedelta(0, number))
    made.rpc = made.rpc or "/infermesh.auth.v1.KeyService/CreateKey"
    return made


@pytest.fixture
async def engine(postgres_url: str) -> AsyncIterator[AsyncEngine]:
    made = make_engine(postgres_url)
    await create_tables(made, metadata)
    async with made.begin() as connection:
        await connection.execute(sa.text("TRUNCATE auth.audit_events, auth.audit_chain"))
    yield made
    async with made.begin() as connection:
        await connection.execute(sa.text("TRUNCATE auth.audit_events, auth.audit_chain"))
    await made.dispose()


async def listed(engine: AsyncEngine, **filters: object) -> Sequence[pb.AuditEvent]:
    request = pb.ListAuditEventsRequest(oldest_first=True)
    for name, value in filters.items():
        if isinstance(value, datetime.datetime):
            getattr(request, name).FromDatetime(value)
        else:
            setattr(request, name, value)
    return await AuditStore(engine).page(request, 1000, None)


async def test_events_come_back_as_they_went_in_and_chained(engine: AsyncEngine) -> None:
    first = event(1, key_id="key_a", tenant="acme", role="admin", presented="", source="192.0.2.7")
    first.before, first.after, first.resource = '{"a":"ö"}', "{}", "key_b"
    assert await AuditStore(engine).append([first]) == 1
    assert await AuditStore(engine).append([event(2)]) == 1
    one, two = await listed(engine)
    assert one.hash == audit_chain.link(audit_chain.START, one).hex()
    first.hash = one.hash
    assert (one, two.sequence) == (first, 2)
    assert two.hash == audit_chain.link(bytes.fromhex(one.hash), two).hex()


async def test_an_event_that_comes_twice_is_kept_once(engine: AsyncEngine) -> None:
    store = AuditStore(engine)
    assert await store.append([event(1), event(2), event(1)]) == 2
    assert await store.append([event(2), event(3)]) == 1
    assert [e.event_id for e in await listed(engine)] == [f"{n:032x}" for n in (1, 2, 3)]
    assert (await verify(engine, 0, audit_chain.START)).complete


async def test_writers_at_once_make_one_chain(engine: AsyncEngine) -> None:
    stores = [AuditStore(engine) for _ in range(4)]
    await asyncio.gather(
        *(stores[n % 4].append([event(n * 10 + i) for i in range(5)]) for n in range(12))
    )
    answer = await verify(engine, 0, audit_chain.START)
    assert (answer.complete, answer.checked_count, answer.HasField("fault")) == (True, 60, False)


FLIPS = [
    f"UPDATE auth.audit_events SET {column} = {value} WHERE sequence = 5"
    for column, value in (
        ("key_id", "'key_other'"),
        ("tenant", "'x'"),
        ("role", "'user'"),
        ("presented", "'x'"),
        ("source", "'198.51.100.1'"),
        ("rpc", "'/x'"),
        ("resource", "'x'"),
        ("request_id", "'x'"),
        ("outcome", "'OK!'"),
        ("before", "'{}'"),
        ("after", "'{}'"),
        ("count", "2"),
        ("kind", "3"),
        ("event_id", "'0'"),
        ("time", "time + interval '1 microsecond'"),
        ("hash", "decode(repeat('00', 32), 'hex')"),
    )
]
SWAP = """
    UPDATE auth.audit_events SET sequence = 1000 - sequence WHERE sequence IN (4, 5);
    UPDATE auth.audit_events SET sequence = CASE sequence WHEN 996 THEN 5 ELSE 4 END
    WHERE sequence IN (995, 996)
"""
MOVE_UP = """
    DELETE FROM auth.audit_events WHERE sequence = 5;
    UPDATE auth.audit_events SET sequence = sequence - 1 WHERE sequence > 5
"""
BASE = "UPDATE auth.audit_chain SET base_sequence = 3, base_hash = "
CHANGED, GAP = pb.AUDIT_FAULT_KIND_CHANGED, pb.AUDIT_FAULT_KIND_GAP
CUT, START = pb.AUDIT_FAULT_KIND_CUT, pb.AUDIT_FAULT_KIND_START


@pytest.mark.parametrize(
    ("tampering", "kind", "sequence"),
    [
        *((flip, CHANGED, 5) for flip in FLIPS),
        ("DELETE FROM auth.audit_events WHERE sequence = 5", GAP, 6),
        ("DELETE FROM auth.audit_events WHERE sequence < 4", GAP, 4),
        ("DELETE FROM auth.audit_events WHERE sequence > 7", CUT, 9),
        ("DELETE FROM auth.audit_events", CUT, 9),
        (SWAP, CHANGED, 4),
        (MOVE_UP, CHANGED, 5),
        (
            f"{BASE}(SELECT hash FROM auth.audit_events WHERE sequence = 3);"
            "DELETE FROM auth.audit_events WHERE sequence <= 3",
            START,
            3,
        ),
        ("DELETE FROM auth.audit_chain", START, 1),
    ],
)
async def test_verify_finds(engine: AsyncEngine, tampering: str, kind: int, sequence: int) -> None:
    await AuditStore(engine).append([event(n) for n in range(1, 10)])
    assert (await verify(engine, 0, audit_chain.START)).complete
    async with engine.begin() as connection:
        for statement in tampering.split(";"):
            assert (await connection.execute(sa.text(statement))).rowcount > 0
    answer = await verify(engine, 0, audit_chain.START)
    assert (answer.fault.kind, answer.fault.sequence) == (kind, sequence)
    assert not answer.complete


async def test_verify_goes_on_where_it_was(engine: AsyncEngine) -> None:
    await AuditStore(engine).append([event(n) for n in range(1, 10)])
    first = await verify(engine, 0, audit_chain.START, limit=4)
    assert (first.complete, first.next_sequence, first.checked_count) == (False, 4, 4)
    rest = await verify(engine, 4, bytes.fromhex(first.next_hash), limit=100)
    assert (rest.complete, rest.next_sequence, rest.checked_count) == (True, 9, 5)


async def test_a_log_that_was_written_anew_does_not_hold_the_old_anchor(
    engine: AsyncEngine,
) -> None:
    await AuditStore(engine).append([event(n) for n in range(1, 6)])
    anchor = await verify(engine, 0, audit_chain.START)
    async with engine.begin() as connection:
        await connection.execute(sa.text("TRUNCATE auth.audit_events, auth.audit_chain"))
    await AuditStore(engine).append([event(n, source="other") for n in range(1, 6)])
    assert (await verify(engine, 0, audit_chain.START)).complete
    answer = await verify(engine, anchor.next_sequence, bytes.fromhex(anchor.next_hash))
    assert answer.fault.kind == CHANGED
    beyond = await verify(engine, 99, bytes.fromhex(anchor.next_hash))
    assert beyond.fault.kind == CUT


async def test_an_empty_log_is_whole(engine: AsyncEngine) -> None:
    answer = await verify(engine, 0, audit_chain.START)
    assert (answer.complete, answer.next_sequence) == (True, 0)


async def test_retention_removes_what_is_old_and_the_chain_still_holds(
    engine: AsyncEngine,
) -> None:
    store, recorder = (
        AuditStore(engine),
        Recorder(lambda *_: None, now_us=lambda: int(NOW.timestamp()) * 10**6),
    )
    await store.append([event(1, 40), event(2, 31), event(3, 5), event(4, 31), event(5)])
    # Events wait in spools, so that times are not in order: what follows a young one stays.
    assert await retain(store, recorder, NOW, 30) == 2
    assert [e.sequence for e in await listed(engine)] == [3, 4, 5, 6]
    last = (await listed(engine))[-1]
    assert last.kind == pb.AUDIT_KIND_CHECKPOINT
    assert '"removed_through":2' in last.after
    answer = await verify(engine, 0, audit_chain.START)
    assert (answer.complete, answer.checked_count, answer.next_sequence) == (True, 4, 6)
    assert await retain(store, recorder, NOW, 30) == 0

    # All of it, and again.
    later = NOW + datetime.timedelta(days=365)
    assert await retain(store, recorder, later, 30) == 4
    assert (await verify(engine, 0, audit_chain.START)).complete
    await store.append([event(7)])
    assert (await verify(engine, 0, audit_chain.START)).next_sequence == 8


async def test_what_retention_did_cannot_be_widened(engine: AsyncEngine) -> None:
    store, recorder = AuditStore(engine), Recorder(lambda *_: None)
    await store.append([event(1, 40), event(2), event(3)])
    assert await retain(store, recorder, NOW, 30) == 1
    async with engine.begin() as connection:
        await connection.execute(
            sa.text(
                "UPDATE auth.audit_chain SET base_sequence = 2, base_hash ="
                " (SELECT hash FROM auth.audit_events WHERE sequence = 2)"
            )
        )
        await connection.execute(sa.text("DELETE FROM auth.audit_events WHERE sequence = 2"))
    answer = await verify(engine, 0, audit_chain.START)
    assert answer.fault.kind == START


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"key_id": "key_a"}, [1]),
        ({"tenant": "acme"}, [2]),
        ({"outcome": "OK"}, [3]),
        ({"kind": pb.AUDIT_KIND_DENIAL}, [4]),
        ({"request_id": "r"}, [5]),
        ({"rpc": "/infermesh.registry.v1."}, [6, 7]),
        ({"rpc": "/infermesh.registry.v1.NodeService/X_"}, [6]),
        ({"rpc": "/infermesh.registry.v1.NodeService/X"}, []),
        ({"start_time": NOW + datetime.timedelta(0, 6)}, [6, 7]),
        ({"end_time": NOW + datetime.timedelta(0, 2)}, [1]),
        ({"tenant": "acme", "outcome": "OK"}, []),
    ],
)
async def test_filters(
    engine: AsyncEngine, filters: dict[str, object], expected: list[int]
) -> None:
    events = [event(n) for n in range(1, 8)]
    events[0].key_id, events[1].tenant, events[2].outcome = "key_a", "acme", "OK"
    events[3].kind, events[4].request_id = pb.AUDIT_KIND_DENIAL, "r"
    events[5].rpc = "/infermesh.registry.v1.NodeService/X_"
    events[6].rpc = "/infermesh.registry.v1.NodeService/XY"
    await AuditStore(engine).append(events)
    assert [e.sequence for e in await listed(engine, **filters)] == expected


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_while_postgresql_is_away_events_wait_and_then_arrive_once_in_order(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    store, is_away, commits_unseen = AuditStore(engine), True, False
    tries = 0

    async def send(batch: Sequence[pb.AuditEvent]) -> None:
        nonlocal tries, commits_unseen
        tries += 1
        if is_away:
            raise StoreUnavailableError("away")
        await store.append(batch)
        if not commits_unseen:
            commits_unseen = True  # It committed, and the line broke before the answer.
            raise StoreUnavailableError("cut")

    async with open_spool(tmp_path, send) as spool:
        for number in range(1, 700):
            spool.append(event(number).SerializeToString(), True)
        await until(lambda: tries >= 2)
        is_away = False
    spool = AuditSpool(open_log(tmp_path), send)
    await spool.send_waiting()
    await spool.close()
    assert [int(e.event_id, 16) for e in await listed(engine)] == list(range(1, 700))
    assert (await verify(engine, 0, audit_chain.START)).complete
