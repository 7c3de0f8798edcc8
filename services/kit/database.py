"""Opens a service's own schema in PostgreSQL, and transactions in it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateSchema

from services.kit.errors import StoreUnavailableError

log = logging.getLogger(__name__)

_OPEN_TIMEOUT_S = 30.0

# Classes of SQLSTATE: data exception, integrity constraint violation, syntax or access rule.
_FAULT_CLASSES = ("22", "23", "42")


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
    """Makes the schema, tables and columns that are missing, waiting for the server to come up.

    Safe with several replicas that start at once. A table of an earlier version gets the columns
    that it lacks, which must take NULL or have a `server_default`; nothing is changed or dropped.

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
                await connection.run_sync(_add_columns, metadata)
            return
        except sa.exc.ProgrammingError:
            raise
        # A server that starts up refuses with an error that has no class of its own.
        except (OSError, sa.exc.DBAPIError) as error:
            if asyncio.get_running_loop().time() > deadline:
                raise
            log.warning("waiting for PostgreSQL", extra={"error": str(error)})
            await asyncio.sleep(0.2)


def _add_columns(connection: sa.Connection, metadata: sa.MetaData) -> None:
    found = sa.inspect(connection)
    for table in metadata.sorted_tables:
        known = {column["name"] for column in found.get_columns(table.name, schema=table.schema)}
        for column in table.columns:
            if column.name not in known:
                words = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                name = connection.dialect.identifier_preparer.format_table(table)
                connection.execute(sa.text(f"ALTER TABLE {name} ADD COLUMN {words}"))


@contextlib.asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Opens a transaction that commits when the context ends, or rolls back where it raises.

    Raises:
        StoreUnavailableError: PostgreSQL is away, starts up, shuts down or has no room.
        sqlalchemy.exc.DBAPIError: A statement or its values are at fault.
    """
    try:
        async with engine.begin() as connection:
            yield connection
    except (OSError, sa.exc.TimeoutError, sa.exc.DBAPIError) as error:
        if isinstance(error, sa.exc.DBAPIError) and _is_fault(error):
            raise
        log.warning("PostgreSQL does not answer", extra={"error": repr(error)})
        raise StoreUnavailableError(str(error)) from error


def _is_fault(error: sa.exc.DBAPIError) -> bool:
    if isinstance(error, sa.exc.IntegrityError | sa.exc.ProgrammingError | sa.exc.DataError):
        return True
    # Everything else that the server says comes as a plain DBAPIError, be it a value out of range
    # or that it starts up.
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    return str(sqlstate).startswith(_FAULT_CLASSES)
