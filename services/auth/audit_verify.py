"""Checks the chain of the audit log against what the table holds."""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from infermesh.auth.v1 import audit_service_pb2 as pb
from services.auth.audit_store import chain, checkpoint_text, events, to_event
from services.kit import audit_chain
from services.kit.database import transaction

MAX_CHECKED = 50_000
# Few at a time: decisions wait for the loop meanwhile, 20 µs for each event.
_BATCH = 250


async def verify(
    engine: AsyncEngine, sequence: int, hash_: bytes, limit: int = MAX_CHECKED
) -> pb.VerifyAuditLogResponse:
    """Checks the chain from an event on.

    Args:
        engine: The database.
        sequence: The event after which to start; 0 for the start.
        hash_: The hash that it must have.
        limit: The most events to check.

    Raises:
        MeshError: `STORE_UNAVAILABLE`.
    """
    # One snapshot, so that what is written or removed meanwhile looks like no fault.
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ")
    async with transaction(snapshot) as connection:
        return await _Check(connection, limit).run(sequence, hash_)


class _FaultError(Exception):
    def __init__(self, kind: "pb.AuditFaultKind.ValueType", sequence: int) -> None:
        super().__init__(kind, sequence)
        self.fault = pb.AuditFault(kind=kind, sequence=sequence)


class _Check:
    def __init__(self, connection: AsyncConnection, limit: int) -> None:
        self._connection = connection
        self._limit = limit
        self._checked = 0
        self._sequence = 0
        self._hash = audit_chain.START

    async def run(self, sequence: int, hash_: bytes) -> pb.VerifyAuditLogResponse:
        answer = pb.VerifyAuditLogResponse()
        try:
            answer.complete = await self._follow(sequence, hash_)
        except _FaultError as found:
            answer.fault.CopyFrom(found.fault)
        answer.checked_count = self._checked
        answer.next_sequence, answer.next_hash = self._sequence, self._hash.hex()
        return answer

    async def _follow(self, sequence: int, hash_: bytes) -> bool:
        ends = (await self._connection.execute(sa.select(chain))).first()
        if ends is None:
            first = await self._connection.scalar(sa.select(sa.func.min(events.c.sequence)))
            if first is not None:
                raise _FaultError(pb.AUDIT_FAULT_KIND_START, first)
            if sequence:
                raise _FaultError(pb.AUDIT_FAULT_KIND_CUT, sequence)
            return True
        if sequence <= ends.base_sequence:
            await self._start(ends.base_sequence, bytes(ends.base_hash))
            if sequence == ends.base_sequence and sequence and hash_ != self._hash:
                raise _FaultError(pb.AUDIT_FAULT_KIND_CHANGED, sequence)
        else:
            await self._resume(sequence, hash_, ends.head_sequence)
        while self._checked < self._limit:
            if not await self._batch(min(_BATCH, self._limit - self._checked)):
                break
        else:
            return False
        if self._sequence < ends.head_sequence:
            raise _FaultError(pb.AUDIT_FAULT_KIND_CUT, ends.head_sequence)
        if self._sequence > ends.head_sequence or self._hash != bytes(ends.head_hash):
            raise _FaultError(pb.AUDIT_FAULT_KIND_CHANGED, self._sequence)
        return True

    async def _start(self, base: int, base_hash: bytes) -> None:
        """Starts where retention left off; the newest checkpoint in the chain must say so too."""
        said = await self._connection.scalar(
            sa.select(events.c.after)
            .where(events.c.kind == pb.AUDIT_KIND_CHECKPOINT)
            .order_by(events.c.sequence.desc())
            .limit(1)
        )
        expected = checkpoint_text(base, base_hash) if base else None
        if said != expected or (not base and base_hash != audit_chain.START):
            raise _FaultError(pb.AUDIT_FAULT_KIND_START, base)
        self._sequence, self._hash = base, base_hash

    async def _resume(self, sequence: int, hash_: bytes, head: int) -> None:
        found = await self._connection.scalar(
            sa.select(events.c.hash).where(events.c.sequence == sequence)
        )
        if found is None:
            gone = sequence > head
            kind = pb.AUDIT_FAULT_KIND_CUT if gone else pb.AUDIT_FAULT_KIND_GAP
            raise _FaultError(kind, sequence)
        if bytes(found) != hash_:
            raise _FaultError(pb.AUDIT_FAULT_KIND_CHANGED, sequence)
        self._sequence, self._hash = sequence, hash_

    async def _batch(self, size: int) -> bool:
        """Checks the next events; says whether there were any."""
        query = sa.select(events).where(events.c.sequence > self._sequence)
        rows = (await self._connection.execute(query.order_by(events.c.sequence).limit(size))).all()
        for row in rows:
            if row.sequence != self._sequence + 1:
                raise _FaultError(pb.AUDIT_FAULT_KIND_GAP, row.sequence)
            expected = audit_chain.link(self._hash, to_event(row))
            if bytes(row.hash) != expected:
                raise _FaultError(pb.AUDIT_FAULT_KIND_CHANGED, row.sequence)
            self._sequence, self._hash = row.sequence, expected
            self._checked += 1
        return bool(rows)
