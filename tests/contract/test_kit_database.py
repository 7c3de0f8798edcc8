"""How the driver's errors arrive, which its documentation does not say."""

import asyncio

import pytest
import sqlalchemy as sa

from services.kit.database import make_engine, transaction
from services.kit.errors import StoreUnavailableError

_FIELDS = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"


async def _start_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(8)
    writer.write(b"N")  # no TLS here
    await reader.read(1024)
    writer.write(b"E" + (len(_FIELDS) + 4).to_bytes(4, "big") + _FIELDS)
    writer.close()


async def test_a_server_that_starts_up_is_away() -> None:
    server = await asyncio.start_server(_start_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    engine = make_engine(f"postgresql+asyncpg://u:p@127.0.0.1:{port}/d")
    with pytest.raises(StoreUnavailableError, match="is starting up"):
        async with transaction(engine):
            pass
    await engine.dispose()
    server.close()


async def test_a_value_out_of_range_passes_through(postgres_url: str) -> None:
    engine = make_engine(postgres_url)
    for statement, values in (
        ("SELECT CAST('x' AS int)", {}),
        ("SELECT CAST(:n AS int)", {"n": 2**40}),
    ):
        with pytest.raises(sa.exc.DBAPIError):
            async with transaction(engine) as connection:
                await connection.execute(sa.text(statement), values)
    await engine.dispose()
