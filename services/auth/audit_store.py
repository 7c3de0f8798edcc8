"""The audit log in PostgreSQL, schema `auth`: a table of chained events and where its ends are."""

import datetime
from collections.abc import Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from infermesh.auth.v1 import audit_service_pb2 as pb
from services.kit import audit_chain
from services.kit.database import transaction

metadata = sa.MetaData(schema="auth")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


events = sa.Table(
    "audit_events",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Column("event_id", sa.Text, nullable=False, unique=True),
    sa.Column("time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    _text("key_id"),
    _text("tenant"),
    _text("role"),
    _text("presented"),
    _text("source"),
    _text("rpc"),
    _text("resource"),
    _text("request_id"),
    _text("outcome"),
    _text("before"),
    _text("after"),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Index("audit_events_by_time", "time"),
    sa.Index("audit_events_by_key", "key_id", "sequence"),
    sa.Index("audit_events_by_request", "request_id"),
)

chain = sa.Table(
    "audit_chain",
    metadata,
    sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
    # The last event that retention removed; 0 and the start's hash where it removed none.
    sa.Column("base_sequence", sa.BigInteger, nullable=False),
    sa.Column("base_hash", sa.LargeBinary, nullable=False),
    # The last event.
    sa.Column("head_sequence", sa.BigInteger, nullable=False),
    sa.Column("head_hash", sa.LargeBinary, nullable=False),
)

_PLAIN = (
    "event_id",
    "kind",
    "key_id",
    "tenant",
    "role",
    "presented",
    "source",
    "rpc",
    "resource",
    "request_id",
    "outcome",
    "before",
    "after",
    "count",
)
MAX_REMOVED = 50_000
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)


class AuditStore:
    """Appends to the chain, removes what is too old, and reads."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def append(self, batch: Sequence[pb.AuditEvent]) -> int:
        """Adds events at the end, in their order; passes over those that are in the log already.

        Args:
            batch: Events with an id; `sequence` and `hash` are set here.

        Returns:
            How many were added.

        Raises:
            MeshError: `STORE_UNAVAILABLE`.
        """
        if not batch:
            return 0
        async with transaction(self._engine) as connection:
            ends = await _lock(connection)
            ids = [event.event_id for event in batch]
            found = await connection.execute(
                sa.select(events.c.event_id).where(events.c.event_id.in_(ids))
            )
            known = set(found.scalars())
            return await _append(connection, ends, [e for e in batch if e.event_id not in known])

    async def remove(self, before: datetime.datetime, checkpoint: pb.AuditEvent) -> int:
        """Removes the oldest events, up to the first that is not older, at most 50,000.

        The removal is itself an event, which says where the chain goes on.

        Args:
            before: What happened earlier is removed.
            checkpoint: The event that is added where something is removed.

        Returns:
            How many were removed.

        Raises:
            MeshError: `STORE_UNAVAILABLE`.
        """
        async with transaction(self._engine) as connection:
            ends = await _lock(connection)
            first_kept = await connection.scalar(
                sa.select(events.c.sequence)
                .where(events.c.time >= before)
                .order_by(events.c.sequence)
                .limit(1)
            )
            last = ends.head_sequence if first_kept is None else first_kept - 1
            last = min(last, ends.base_sequence + MAX_REMOVED)
            if last <= ends.base_sequence:
                return 0
            last_hash = await connection.scalar(
                sa.select(events.c.hash).where(events.c.sequence == last)
            )
            if last_hash is None:
                # A gap: someone else removed events. What is left stays, for verify to tell.
                return 0
            removed = last - ends.base_sequence
            await connection.execute(sa.delete(events).where(events.c.sequence <= last))
            checkpoint.after = checkpoint_text(last, bytes(last_hash))
            checkpoint.outcome = "OK"
            await _append(connection, ends, [checkpoint])
            await connection.execute(
                sa.update(chain).values(base_sequence=last, base_hash=bytes(last_hash))
            )
        return int(removed)

    async def page(
        self, request: pb.ListAuditEventsRequest, size: int, after: int | None
    ) -> Sequence[pb.AuditEvent]:
        """Returns the next events that a request asks for.

        Args:
            request: Its filters and its order.
            size: The most events to return.
            after: The sequence of the last event of the page before.
        """
        place = events.c.sequence
        query = sa.select(events).where(*_filters(request)).limit(size)
        if request.oldest_first:
            query = query.order_by(place)
            query = query if after is None else query.where(place > after)
        else:
            query = query.order_by(place.desc())
            query = query if after is None else query.where(place < after)
        async with transaction(self._engine) as connection:
            return [to_event(row) for row in await connection.execute(query)]


def checkpoint_text(sequence: int, hash_: bytes) -> str:
    """Returns `after` of the event that says that all up to an event were removed."""
    return orjson.dumps({"removed_through": sequence, "hash": hash_.hex()}).decode()


def to_event(row: Any) -> pb.AuditEvent:
    """Returns the event of a row."""
    event = pb.AuditEvent(sequence=row.sequence, hash=bytes(row.hash).hex())
    for name in _PLAIN:
        # A row is no tuple of ours: its `count` is a method.
        setattr(event, name, row._mapping[name])
    event.time.FromMicroseconds((row.time - _EPOCH) // _MICROSECOND)
    return event


async def _lock(connection: AsyncConnection) -> Any:
    """Waits to be the only writer; returns the ends of the chain."""
    await connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('auth.audit'))"))
    start = {
        "id": 1,
        "base_sequence": 0,
        "base_hash": audit_chain.START,
        "head_sequence": 0,
        "head_hash": audit_chain.START,
    }
    await connection.execute(insert(chain).values(start).on_conflict_do_nothing())
    return (await connection.execute(sa.select(chain))).one()


async def _append(connection: AsyncConnection, ends: Any, batch: Sequence[pb.AuditEvent]) -> int:
    sequence, last_hash = ends.head_sequence, bytes(ends.head_hash)
    rows, seen = [], set()
    for event in batch:
        if event.event_id in seen:
            continue
        seen.add(event.event_id)
        sequence += 1
        event.sequence = sequence
        last_hash = audit_chain.link(last_hash, event)
        row = {name: getattr(event, name) for name in _PLAIN}
        time = _EPOCH + event.time.ToMicroseconds() * _MICROSECOND
        rows.append({"sequence": sequence, "hash": last_hash, "time": time, **row})
    if rows:
        await connection.execute(sa.insert(events), rows)
        await connection.execute(
            sa.update(chain).values(head_sequence=sequence, head_hash=last_hash)
        )
    return len(rows)


def _filters(request: pb.ListAuditEventsRequest) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = [
        events.c[name] == getattr(request, name)
        for name in ("key_id", "tenant", "outcome", "kind", "request_id")
        if getattr(request, name)
    ]
    if request.rpc.endswith(("/", ".")):
        found.append(events.c.rpc.startswith(request.rpc, autoescape=True))
    elif request.rpc:
        found.append(events.c.rpc == request.rpc)
    if request.HasField("start_time"):
        found.append(events.c.time >= request.start_time.ToDatetime(datetime.UTC))
    if request.HasField("end_time"):
        found.append(events.c.time < request.end_time.ToDatetime(datetime.UTC))
    return found
