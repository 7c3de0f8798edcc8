"""Opens a service's own schema in PostgreSQL."""

import asyncio
import logging

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateSchema

log = logging.getLogger(__name__)

_OPEN_TIMEOUT_S = 30.0


def make_engine(url: str, *, pool_size: int = 5) -> AsyncEngine:
    """Returns an engine that opens connections when they are first needed.

    Args:
        url: `postgresql+asyncpg://user:password@host:port/database`.
        pool_size: The most connections that are kept and used at the same time.
    """
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        # A restarted server leaves dead connections in the pool: find out before, not in, a query.
        pool_pre_ping=True,
        connect_args={"timeout": 5, "command_timeout": 10},
    )


async def create_tables(engine: AsyncEngine, metadata: sa.MetaData) -> None:
    """Makes the schema and the tables that are missing, waiting for the server to come up.

    Safe with several replicas that start at once.

    Raises:
        OSError: The server did not come up within 30 s.
    """
    deadline = asyncio.get_running_loop().time() + _OPEN_TIMEOUT_S
    while True:
        try:
            async with engine.begin() as connection:
                # One maker at a time: CREATE … IF NOT EXISTS races with itself.
                await connection.execute(
                    sa.text("SELECT pg_advisory_xact_lock(hashtext(:schema))"),
                    {"schema": f"infermesh.{metadata.schema}"},
                )
                await connection.execute(CreateSchema(str(metadata.schema), if_not_exists=True))
                await connection.run_sync(metadata.create_all)
            return
        except sa.exc.ProgrammingError:
            raise
        # A server that starts up refuses with an error that has no class of its own.
        except (OSError, sa.exc.DBAPIError) as error:
            if asyncio.get_running_loop().time() > deadline:
                raise
            log.warning("waiting for PostgreSQL", extra={"error": str(error)})
            await asyncio.sleep(0.2)
