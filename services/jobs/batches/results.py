"""Writes the files of batches whose lines have all ended."""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.jobs.files import store as files
from services.jobs.files.multipart import PIECE_BYTES
from services.jobs.files.servicer import new_file_id
from services.jobs.identity import Scope
from services.jobs.tables import batches, lines
from services.kit.database import transaction

_PAGE = 200
_PURPOSE = "batch_output"
_ENDS = {"in_progress": "completed", "finalizing": "expired", "cancelling": "cancelled"}


class Results:
    """Ends batches.

    Args:
        engine: The database.
        ttl_s: How long the files are kept, in seconds.
    """

    def __init__(self, engine: AsyncEngine, ttl_s: int) -> None:
        self._engine = engine
        self._ttl_s = ttl_s

    async def finalize(self) -> bool:
        """Ends one batch, if there is one to end; says whether there was.

        All of it is one transaction: a process that dies in it leaves the batch as it was.
        """
        open_lines = sa.exists().where(
            lines.c.batch_id == batches.c.id, lines.c.state.in_(("waiting", "running"))
        )
        query = (
            sa.select(batches)
            .where(batches.c.status.in_(tuple(_ENDS)), ~open_lines)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        async with transaction(self._engine) as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
            if row is None:
                return False
            scope = Scope(row["tenant"], row["project"])
            output = await self._write(connection, scope, row["id"], "done", "output")
            errors = await self._write(connection, scope, row["id"], "failed", "errors")
            await connection.execute(
                batches.update()
                .where(batches.c.id == row["id"])
                .values(
                    status=_ENDS[row["status"]],
                    output_file_id=output,
                    error_file_id=errors,
                    finalize_time=sa.func.coalesce(batches.c.finalize_time, sa.func.now()),
                    end_time=sa.func.now(),
                )
            )
            await connection.execute(lines.delete().where(lines.c.batch_id == row["id"]))
        return True

    async def _write(
        self, connection: AsyncConnection, scope: Scope, batch_id: str, state: str, kind: str
    ) -> str | None:
        """Writes the results of lines in a state into a file; returns its id, None for no lines."""
        file_id: str | None = None
        buffer = bytearray()
        last = size = pieces = 0
        while True:
            page = await connection.execute(
                sa.select(lines.c.number, lines.c.result)
                .where(lines.c.batch_id == batch_id, lines.c.state == state, lines.c.number > last)
                .order_by(lines.c.number)
                .limit(_PAGE)
            )
            rows = page.all()
            if rows and file_id is None:
                file_id = new_file_id()
                await files.begin(connection, scope, file_id)
            for row in rows:
                buffer += row.result + b"\n"
                last = row.number
            while len(buffer) >= PIECE_BYTES or (buffer and not rows):
                piece = bytes(buffer[:PIECE_BYTES])
                del buffer[:PIECE_BYTES]
                await files.append(connection, str(file_id), pieces, piece)
                size, pieces = size + len(piece), pieces + 1
            if not rows:
                break
        if file_id is not None:
            name = f"{batch_id}_{kind}.jsonl"
            await files.finish(connection, file_id, name, _PURPOSE, size, self._ttl_s)
        return file_id
