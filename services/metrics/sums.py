"""Sums of the ledger by what a caller chooses."""

import datetime as dt
from collections.abc import Collection
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from infermesh.errors.v1 import errors_pb2
from infermesh.metrics.v1 import usage_service_pb2 as pb
from services.kit.database import transaction
from services.kit.errors import MeshError
from services.metrics.tables import usage_daily
from services.metrics.usage import SumKey, Sums

MAX_SUMS = 50_000

DEFAULT_DIMENSIONS = (int(pb.USAGE_DIMENSION_KEY), int(pb.USAGE_DIMENSION_MODEL))

# A key belongs to a project, and a project to a tenant: it is told with them.
_COLUMNS = {
    int(pb.USAGE_DIMENSION_TENANT): ("tenant",),
    int(pb.USAGE_DIMENSION_PROJECT): ("tenant", "project"),
    int(pb.USAGE_DIMENSION_KEY): ("tenant", "project", "key_id"),
    int(pb.USAGE_DIMENSION_MODEL): ("model",),
    int(pb.USAGE_DIMENSION_DAY): ("day",),
}
_SUM_COLUMNS = tuple(usage_daily.c[name] for name in Sums._fields)


class Question(NamedTuple):
    """Which sums are wanted.

    Args:
        dimensions: Numbers of `UsageDimension` to sum by; empty is `DEFAULT_DIMENSIONS`.
        first_day: The first day (UTC), where it is bounded.
        end_day: The day after the last, where it is bounded.
        tenant: Only this tenant, unless empty.
        project: Only this project, unless empty.
        key_id: Only this key, unless empty.
        model: Only this model, unless empty.
    """

    dimensions: Collection[int] = ()
    first_day: dt.date | None = None
    end_day: dt.date | None = None
    tenant: str = ""
    project: str = ""
    key_id: str = ""
    model: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """What is summed by, in the order of the sums."""
        wanted = {name for each in self.dimensions or DEFAULT_DIMENSIONS for name in _COLUMNS[each]}
        return tuple(name for name in SumKey._fields if name in wanted)


class Sum(NamedTuple):
    """A sum, by `Question.columns`."""

    by: tuple[dt.date | str, ...]
    sums: Sums


class UsageSums:
    """Reads the sums of the ledger.

    Every method raises `StoreUnavailableError` when PostgreSQL does not answer.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def get(self, question: Question) -> list[Sum]:
        """Returns the sums in the order of what they are by.

        Raises:
            MeshError: `INVALID_ARGUMENT`; there are more than `MAX_SUMS`.
        """
        groups = [usage_daily.c[name] for name in question.columns]
        query = (
            sa.select(
                *groups,
                *(
                    sa.cast(sa.func.sum(c), sa.Numeric if c.name == "cost" else sa.BigInteger)
                    for c in _SUM_COLUMNS
                ),
            )
            .group_by(*groups)
            # Byte order: the same for every database, whatever its locale.
            .order_by(*(c if c.name == "day" else sa.collate(c, "C") for c in groups))
            # An attempt that took the place of another key's leaves a sum of nothing there.
            .having(sa.func.sum(usage_daily.c.request_count) > 0)
            .limit(MAX_SUMS + 1)
        )
        if question.first_day is not None:
            query = query.where(usage_daily.c.day >= question.first_day)
        if question.end_day is not None:
            query = query.where(usage_daily.c.day < question.end_day)
        for name in ("tenant", "project", "key_id", "model"):
            if value := getattr(question, name):
                query = query.where(usage_daily.c[name] == value)
        async with transaction(self._engine) as connection:
            rows = (await connection.execute(query)).all()
        if len(rows) > MAX_SUMS:
            raise MeshError(
                errors_pb2.ERROR_REASON_INVALID_ARGUMENT,
                f"There are more than {MAX_SUMS} sums: ask for fewer days, or sum by less.",
                param="group_by",
            )
        width = len(groups)
        return [Sum(tuple(row[:width]), Sums(*row[width:])) for row in rows]
