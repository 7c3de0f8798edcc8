"""What callers see of batches, in PostgreSQL; `work.py` has what the workers do with them."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from services.jobs.batches.requests import WINDOW_S, BatchRequest
from services.jobs.errors import check_id, not_found
from services.jobs.identity import Scope
from services.jobs.tables import batches
from services.kit.database import transaction

ACTIVE = ("validating", "in_progress", "finalizing", "cancelling")
"""The states in which there is something to do."""


@dataclass(frozen=True)
class Batch:
    """A batch as its row has it."""

    id: str
    key_id: str
    status: str
    fields: dict[str, Any]

    def shown(self) -> dict[str, Any]:
        """Returns OpenAI's object."""
        row = self.fields
        ended = _seconds(row["end_time"])

        def when(status: str) -> int | None:
            return ended if self.status == status else None

        return {
            "id": self.id,
            "object": "batch",
            "endpoint": row["endpoint"],
            "errors": orjson.loads(row["errors"]) if row["errors"] else None,
            "input_file_id": row["input_file_id"],
            "completion_window": row["completion_window"],
            "status": self.status,
            "output_file_id": row["output_file_id"],
            "error_file_id": row["error_file_id"],
            "created_at": _seconds(row["create_time"]),
            "in_progress_at": _seconds(row["begin_time"]),
            "expires_at": _seconds(row["due_time"]),
            "finalizing_at": _seconds(row["finalize_time"]),
            "completed_at": when("completed"),
            "failed_at": when("failed"),
            "expired_at": when("expired"),
            "cancelling_at": _seconds(row["cancel_time"]),
            "cancelled_at": when("cancelled"),
            "request_counts": {
                "total": row["total"],
                "completed": row["completed"],
                "failed": row["failed"],
            },
            "metadata": orjson.loads(row["metadata"]),
        }


class BatchStore:
    """The batches of all tenants; each sees its own.

    Args:
        engine: The database.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def create(
        self, scope: Scope, key_id: str, batch_id: str, asked: BatchRequest, max_active: int
    ) -> Batch | None:
        """Makes a batch; returns None where the tenant has `max_active` that are not over.

        Raises:
            StoreUnavailableError: The database does not answer.
        """
        now = datetime.now(UTC)
        values = {
            "id": batch_id,
            "tenant": scope.tenant,
            "project": scope.project,
            "key_id": key_id,
            "status": "validating",
            "endpoint": asked.endpoint,
            "completion_window": asked.completion_window,
            "input_file_id": asked.input_file_id,
            "metadata": orjson.dumps(asked.metadata),
            "create_time": now,
            "due_time": now + timedelta(seconds=WINDOW_S),
        }
        count = sa.select(sa.func.count()).where(
            batches.c.tenant == scope.tenant, batches.c.status.in_(ACTIVE)
        )
        async with transaction(self._engine) as connection:
            if (await connection.execute(count)).scalar_one() >= max_active:
                return None
            made = await connection.execute(batches.insert().values(values).returning(batches))
            return batch_of(made.mappings().one())

    async def get(self, scope: Scope, batch_id: str, param: str = "batch_id") -> Batch:
        """Returns a batch.

        Raises:
            MeshError: `NOT_FOUND`.
            StoreUnavailableError: The database does not answer.
        """
        check_id("batch", batch_id, param)
        query = sa.select(batches).where(*_owned(scope), batches.c.id == batch_id)
        async with transaction(self._engine) as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            raise not_found("batch", batch_id, param)
        return batch_of(row)

    async def list_page(self, scope: Scope, limit: int, after: str) -> list[Batch]:
        """Returns batches, newest first, after the one with the id `after`. Raises like `get`."""
        query = sa.select(batches).where(*_owned(scope)).limit(limit)
        if after:
            last = await self.get(scope, after, "after")
            at = sa.tuple_(sa.literal(last.fields["create_time"]), sa.literal(last.id))
            query = query.where(sa.tuple_(batches.c.create_time, batches.c.id) < at)
        query = query.order_by(batches.c.create_time.desc(), batches.c.id.desc())
        async with transaction(self._engine) as connection:
            return [batch_of(row) for row in (await connection.execute(query)).mappings()]

    async def cancel(self, scope: Scope, batch_id: str) -> Batch:
        """Lets no line of a batch begin any more; one that is over stays as it is.

        Raises like `get`.
        """
        check_id("batch", batch_id, "batch_id")
        async with transaction(self._engine) as connection:
            await connection.execute(
                batches.update()
                .where(
                    *_owned(scope),
                    batches.c.id == batch_id,
                    batches.c.status.in_(("validating", "in_progress")),
                )
                .values(status="cancelling", cancel_time=sa.func.now(), worker=None)
            )
        return await self.get(scope, batch_id)

    async def sweep(self, ttl_s: int) -> int:
        """Forgets batches that ended so long ago; returns how many."""
        old = sa.select(batches.c.id).where(
            batches.c.end_time <= sa.func.now() - timedelta(seconds=ttl_s)
        )
        async with transaction(self._engine) as connection:
            done = await connection.execute(
                batches.delete().where(batches.c.id.in_(old.limit(100))).returning(batches.c.id)
            )
            return len(done.all())


def batch_of(row: Any) -> Batch:
    """Returns what a row says."""
    return Batch(row["id"], row["key_id"], row["status"], dict(row))


def _owned(scope: Scope) -> tuple[sa.ColumnElement[bool], ...]:
    return (batches.c.tenant == scope.tenant, batches.c.project == scope.project)


def _seconds(when: datetime | None) -> int | None:
    return None if when is None else int(when.timestamp())
