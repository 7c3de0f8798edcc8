"""Brings tables of an earlier version to what `tables` says where columns alone do not."""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from services.metrics.tables import usage_daily

_KEY = ", ".join(column.name for column in usage_daily.primary_key.columns)


async def adopt(engine: AsyncEngine) -> None:
    """Gives sums that were not kept by project their key. Safe with several replicas at once."""
    async with engine.begin() as connection:
        # No other replica looks or writes meanwhile.
        await connection.execute(sa.text("LOCK TABLE metrics.usage_daily IN EXCLUSIVE MODE"))
        if await connection.run_sync(_is_kept_by_project):
            return
        # Nothing had a price.
        await connection.execute(
            sa.text("UPDATE metrics.usage_daily SET unpriced_count = request_count")
        )
        await connection.execute(
            sa.text(
                "ALTER TABLE metrics.usage_daily DROP CONSTRAINT usage_daily_pkey,"
                f" ADD PRIMARY KEY ({_KEY})"
            )
        )


def _is_kept_by_project(connection: sa.Connection) -> bool:
    key = sa.inspect(connection).get_pk_constraint("usage_daily", schema="metrics")
    return "project" in key["constrained_columns"]
