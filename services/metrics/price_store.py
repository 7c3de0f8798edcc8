"""Prices in PostgreSQL."""

from collections.abc import Collection, Mapping

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from infermesh.errors.v1 import errors_pb2
from services.kit.database import transaction
from services.kit.errors import MeshError
from services.metrics.columns import names
from services.metrics.prices import MAX_PRICES, Price
from services.metrics.tables import prices

_COLUMNS = tuple(prices.c[name] for name in Price._fields)
_OF_MODELS = f"SELECT {names(_COLUMNS)} FROM metrics.prices WHERE model = ANY($1)"  # noqa: S608


async def read(connection: AsyncConnection, models: Collection[str]) -> Mapping[str, Price]:
    """Returns the prices that models have, in a transaction that is open."""
    rows = await connection.exec_driver_sql(_OF_MODELS, (list(models),))
    return {row.model: Price._make(row) for row in rows}


class Prices:
    """Keeps what models cost now.

    Every method raises `StoreUnavailableError` when PostgreSQL does not answer.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def put(self, price: Price) -> None:
        """Sets the price of a model.

        Raises:
            MeshError: `FAILED_PRECONDITION`; it is a further one and there are `MAX_PRICES`.
        """
        statement = postgresql.insert(prices).values(price._asdict())
        statement = statement.on_conflict_do_update(
            index_elements=[prices.c.model],
            set_={name: statement.excluded[name] for name in Price._fields[1:]},
        )
        async with transaction(self._engine) as connection:
            await connection.execute(statement)
            count = await connection.scalar(sa.select(sa.func.count()).select_from(prices))
            if count is not None and count > MAX_PRICES:
                raise MeshError(
                    errors_pb2.ERROR_REASON_FAILED_PRECONDITION,
                    f"{MAX_PRICES} models have a price; delete one first.",
                )

    async def get(self, model: str) -> Price | None:
        """Returns the price of a model."""
        async with transaction(self._engine) as connection:
            return (await read(connection, [model])).get(model)

    async def list(self) -> list[Price]:
        """Returns all prices by model."""
        # Byte order: the same for every database, whatever its locale.
        query = sa.select(*_COLUMNS).order_by(sa.collate(prices.c.model, "C")).limit(MAX_PRICES)
        async with transaction(self._engine) as connection:
            return [Price._make(row) for row in await connection.execute(query)]

    async def delete(self, model: str) -> Price | None:
        """Takes the price from a model and returns it."""
        statement = sa.delete(prices).where(prices.c.model == model).returning(*_COLUMNS)
        async with transaction(self._engine) as connection:
            row = (await connection.execute(statement)).first()
            return None if row is None else Price._make(row)
