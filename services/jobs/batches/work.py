"""What workers do with batches in PostgreSQL, so that each line runs at most once.

    waiting ──claim──► running ──finish──► done, failed
       ▲                  │
       └──put back────────┤   it was refused before it ran
                          └──reap──► failed: its worker is dead, and nobody knows how it ended

That a line runs is committed before its request leaves. A worker says every few seconds that it
lives; what it writes of a line that was taken from it meanwhile is dropped.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from services.jobs.batches.claim import Claim
from services.jobs.batches.requests import Line, request_id, unanswered
from services.jobs.batches.store import Batch, batch_of
from services.jobs.tables import batches, lines, workers
from services.kit.database import transaction

_REAPED = 1000
UNKNOWN = (
    "outcome_unknown",
    "The mesh was interrupted while this request ran; it may have been answered. It was not run "
    "again.",
)
EXPIRED = ("batch_expired", "The batch's completion window ended before this request had.")
CANCELLED = ("batch_cancelled", "The batch was cancelled before this request had ended.")


class Work:
    """One worker's view of the tables.

    Args:
        engine: The database.
        worker: The worker's id, new for each process.
        lease_s: How long a worker that is not heard of counts as alive.
    """

    def __init__(self, engine: AsyncEngine, worker: str, lease_s: float) -> None:
        self._engine = engine
        self._worker = worker
        self._lease = timedelta(seconds=lease_s)

    async def beat(self) -> None:
        """Says that this worker lives."""
        until = sa.func.now() + self._lease
        async with transaction(self._engine) as connection:
            await connection.execute(
                insert(workers)
                .values(id=self._worker, lease_time=until)
                .on_conflict_do_update(index_elements=["id"], set_={"lease_time": until})
            )

    async def leave(self) -> None:
        """Says that this worker is gone."""
        async with transaction(self._engine) as connection:
            await connection.execute(workers.delete().where(workers.c.id == self._worker))

    async def reap(self) -> int:
        """Ends lines whose workers are dead; returns how many."""
        alive = sa.select(workers.c.id).where(workers.c.lease_time > sa.func.now())
        async with transaction(self._engine) as connection:
            await connection.execute(
                workers.delete().where(workers.c.lease_time < sa.func.now() - self._lease)
            )
            found = await connection.execute(
                sa.select(lines.c.batch_id, lines.c.number, lines.c.custom_id, lines.c.tries)
                .where(lines.c.state == "running", lines.c.worker.not_in(alive))
                .limit(_REAPED)
                .with_for_update(skip_locked=True)
            )
            rows = found.all()
            for row in rows:
                line_id = request_id(row.batch_id, row.number, row.tries)
                result = unanswered(line_id, row.custom_id, *UNKNOWN)
                await _end(connection, row.batch_id, row.number, "failed", result)
            return len(rows)

    async def to_validate(self) -> Batch | None:
        """Returns a batch whose input is to be read, which is this worker's now; None for none."""
        alive = sa.select(workers.c.id).where(workers.c.lease_time > sa.func.now())
        query = (
            sa.select(batches)
            .where(
                batches.c.status == "validating",
                # Its own too: it reads one at a time, so that this is one of which it was kept.
                sa.or_(
                    batches.c.worker.is_(None),
                    batches.c.worker == self._worker,
                    batches.c.worker.not_in(alive),
                ),
            )
            .order_by(batches.c.create_time)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        async with transaction(self._engine) as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
            if row is None:
                return None
            await connection.execute(
                batches.update().where(batches.c.id == row["id"]).values(worker=self._worker)
            )
            return batch_of(row)

    async def add(self, batch: Batch, read: Sequence[Line]) -> None:
        """Adds lines of the input; those that are there already stay as they are."""
        rows = [
            {
                "batch_id": batch.id,
                "number": line.number,
                "custom_id": line.custom_id,
                "state": "waiting" if line.error is None else "failed",
                "body": line.body,
                "result": line.error
                and unanswered(request_id(batch.id, line.number, 0), line.custom_id, *line.error),
            }
            for line in read
        ]
        if not rows:
            return
        async with transaction(self._engine) as connection:
            await connection.execute(insert(lines).on_conflict_do_nothing(), rows)

    async def begin(self, batch: Batch, total: int) -> None:
        """Lets a batch's lines run, now that all of them are there."""
        failed = (
            sa.select(sa.func.count())
            .where(lines.c.batch_id == batch.id, lines.c.state == "failed")
            .scalar_subquery()
        )
        async with transaction(self._engine) as connection:
            await connection.execute(
                batches.update()
                .where(batches.c.id == batch.id, batches.c.status == "validating")
                .values(
                    status="in_progress",
                    begin_time=sa.func.now(),
                    total=total,
                    failed=failed,
                    worker=None,
                )
            )

    async def fail(self, batch: Batch, errors: dict[str, Any]) -> None:
        """Ends a batch of which no line can run."""
        async with transaction(self._engine) as connection:
            await connection.execute(
                batches.update()
                .where(batches.c.id == batch.id, batches.c.status == "validating")
                .values(
                    status="failed",
                    end_time=sa.func.now(),
                    errors=orjson.dumps(errors),
                    worker=None,
                )
            )
            await connection.execute(lines.delete().where(lines.c.batch_id == batch.id))

    async def claim(self, count: int, held: Sequence[str] = ()) -> list[Claim]:
        """Returns lines that are this worker's to run, from batches by chance.

        When this returns, it is committed that they run.

        Args:
            count: The most lines.
            held: Batches of which none is to run now.
        """
        ready = (lines.c.state == "waiting") & (
            lines.c.wait_until.is_(None) | (lines.c.wait_until <= sa.func.now())
        )
        chosen = (
            sa.select(batches)
            .where(
                batches.c.status == "in_progress",
                batches.c.due_time > sa.func.now(),
                batches.c.id.not_in(held),
                sa.exists().where(lines.c.batch_id == batches.c.id, ready),
            )
            .order_by(sa.func.random())
            .limit(1)
        )
        async with transaction(self._engine) as connection:
            row = (await connection.execute(chosen)).mappings().one_or_none()
            if row is None:
                return []
            # In a statement of its own: as a subquery it may be run again for every row.
            numbers = await connection.execute(
                sa.select(lines.c.number)
                .where(lines.c.batch_id == row["id"], ready)
                .order_by(lines.c.number)
                .limit(count)
                .with_for_update(skip_locked=True)
            )
            claimed = await connection.execute(
                lines.update()
                .where(lines.c.batch_id == row["id"], lines.c.number.in_(numbers.scalars().all()))
                .values(state="running", worker=self._worker, tries=lines.c.tries + 1)
                .returning(lines.c.number, lines.c.custom_id, lines.c.body, lines.c.tries)
            )
            batch = batch_of(row)
            return [Claim(batch, *each) for each in claimed]

    async def finish(self, claim: Claim, result: bytes, *, is_ok: bool) -> None:
        """Writes down how a line ended."""
        state = "done" if is_ok else "failed"
        async with transaction(self._engine) as connection:
            await _end(connection, claim.batch.id, claim.number, state, result, worker=self._worker)

    async def put_back(self, claim: Claim, wait_s: float) -> None:
        """Lets a line that was refused before it ran be tried again later."""
        async with transaction(self._engine) as connection:
            await connection.execute(
                lines.update()
                .where(*_mine(claim.batch.id, claim.number, self._worker))
                .values(
                    state="waiting",
                    worker=None,
                    wait_until=sa.func.now() + timedelta(seconds=wait_s),
                )
            )

    async def stopped(self, batch_ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Returns which of these batches are to be stopped, and why."""
        query = sa.select(batches.c.id, batches.c.status).where(
            batches.c.id.in_(batch_ids),
            (batches.c.status != "in_progress") | (batches.c.due_time <= sa.func.now()),
        )
        async with transaction(self._engine) as connection:
            found = (await connection.execute(query)).all()
        return {row.id: CANCELLED if row.status == "cancelling" else EXPIRED for row in found}

    async def expire(self) -> None:
        """Ends the waiting lines of batches that are out of time, or cancelled."""
        async with transaction(self._engine) as connection:
            await connection.execute(
                batches.update()
                .where(batches.c.status == "in_progress", batches.c.due_time <= sa.func.now())
                .values(status="finalizing", finalize_time=sa.func.now())
            )
        for status, why in (("finalizing", EXPIRED), ("cancelling", CANCELLED)):
            over = sa.select(batches.c.id).where(batches.c.status == status)
            async with transaction(self._engine) as connection:
                found = await connection.execute(
                    sa.select(lines.c.batch_id, lines.c.number, lines.c.custom_id)
                    .where(lines.c.state == "waiting", lines.c.batch_id.in_(over))
                    .limit(_REAPED)
                    .with_for_update(skip_locked=True)
                )
                for row in found.all():
                    line_id = request_id(row.batch_id, row.number, 0)
                    result = unanswered(line_id, row.custom_id, *why)
                    await _end(connection, row.batch_id, row.number, "failed", result)


def _mine(batch_id: str, number: int, worker: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        lines.c.batch_id == batch_id,
        lines.c.number == number,
        lines.c.state == "running",
        lines.c.worker == worker,
    )


async def _end(
    connection: Any, batch_id: str, number: int, state: str, result: bytes, worker: str = ""
) -> None:
    where = (
        _mine(batch_id, number, worker)
        if worker
        else (lines.c.batch_id == batch_id, lines.c.number == number)
    )
    done = await connection.execute(
        lines.update()
        .where(*where)
        # The request is of no use any more.
        .values(state=state, result=result, worker=None, body=None)
        .returning(lines.c.number)
    )
    if done.one_or_none() is None:
        return
    counted = batches.c.completed if state == "done" else batches.c.failed
    await connection.execute(
        batches.update().where(batches.c.id == batch_id).values({counted: counted + 1})
    )
