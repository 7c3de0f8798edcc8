"""Rows as arrays: one statement with one value for each column writes any number of them.

Statements on the way of every request are plain text for the driver, with numbered parameters: to
have SQLAlchemy make them anew each time costs as much as to run them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql


def unnest(columns: Sequence[sa.Column[Any]]) -> str:
    """Returns the SQL that makes rows of arrays, which are the parameters from `$1` on."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    arrays = (f"${i}::{c.type.compile(dialect)}[]" for i, c in enumerate(columns, start=1))
    return f"unnest({', '.join(arrays)})"


def names(columns: Sequence[sa.Column[Any]]) -> str:
    """Returns the columns' names for SQL."""
    return ", ".join(column.name for column in columns)


def arrays(rows: Iterable[Sequence[Any]]) -> tuple[list[Any], ...]:
    """Returns one array for each column of the rows, of which there must be one at least."""
    return tuple(map(list, zip(*rows, strict=True)))
