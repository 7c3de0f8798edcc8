import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa

from services.kit.database import transaction
from services.kit.errors import StoreUnavailableError


class _DriverError(Exception):
    def __init__(self, sqlstate: str | None) -> None:
        self.sqlstate = sqlstate


class _Engine:
    """Fails as the real one does: at the start of the transaction."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    @contextlib.asynccontextmanager
    async def begin(self) -> AsyncIterator[None]:
        raise self._error
        yield


def _refusal(sqlstate: str | None, kind: type[sa.exc.DBAPIError] = sa.exc.DBAPIError) -> Exception:
    return kind("SELECT 1", {}, _DriverError(sqlstate))


async def _run(error: Exception) -> None:
    engine: Any = _Engine(error)
    async with transaction(engine):
        pass


@pytest.mark.parametrize(
    "error",
    [
        _refusal("57P03"),  # starts up
        _refusal("57P01"),  # shuts down
        _refusal("53300"),  # too many connections
        _refusal(None),
        _refusal(None, sa.exc.InterfaceError),
        _refusal(None, sa.exc.OperationalError),
        sa.exc.TimeoutError(),
        ConnectionRefusedError(),
        TimeoutError(),
    ],
)
async def test_a_server_that_does_not_answer_is_told_as_such(error: Exception) -> None:
    with pytest.raises(StoreUnavailableError) as caught:
        await _run(error)
    assert caught.value.reason_name == "STORE_UNAVAILABLE"
    assert caught.value.__cause__ is error
    assert str(caught.value) == str(error)
    assert "SELECT" not in caught.value.message


@pytest.mark.parametrize(
    "error",
    [
        _refusal("22003"),
        _refusal("23505", sa.exc.IntegrityError),
        _refusal("42P01", sa.exc.ProgrammingError),
        _refusal(None, sa.exc.DataError),
    ],
)
async def test_a_fault_of_the_statement_passes_through(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        await _run(error)
    assert caught.value is error
