"""The store in PostgreSQL, schema `registry`."""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncEngine

from services.kit.database import transaction
from services.registry.store import ModelRow, NodeRow, ServedModelRow

metadata = sa.MetaData(schema="registry")

_model = sa.Table(
    "model",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("capabilities", JSONB, nullable=False),
    sa.Column("context_length", sa.Integer, nullable=False),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
)

_node = sa.Table(
    "node",
    metadata,
    sa.Column("node_id", sa.Text, primary_key=True),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("engine", sa.Text, nullable=False),
    sa.Column("engine_version", sa.Text, nullable=False),
    sa.Column("models", JSONB, nullable=False),
    sa.Column("draining", sa.Boolean, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("join_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("last_report_time", sa.DateTime(timezone=True)),
    sa.Column("labels", JSONB, nullable=False, server_default="{}"),
    sa.Column("tier", sa.SmallInteger, nullable=False, server_default="0"),
)


class PostgresStore:
    """Implements `Store`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def load(self) -> tuple[Sequence[NodeRow], Sequence[ModelRow]]:
        """Returns everything that is kept."""
        async with transaction(self._engine) as connection:
            nodes = (await connection.execute(sa.select(_node))).mappings().all()
            models = (await connection.execute(sa.select(_model))).mappings().all()
        return [_node_row(row) for row in nodes], [_model_row(row) for row in models]

    async def save(
        self,
        nodes: Sequence[NodeRow],
        models: Sequence[ModelRow],
        gone_node_ids: Collection[str] = (),
    ) -> None:
        """Writes all of these or none."""
        async with transaction(self._engine) as connection:
            if models:
                await connection.execute(
                    _upsert(_model, keep=("create_time",)), [asdict(row) for row in models]
                )
            if nodes:
                await connection.execute(_upsert(_node), [asdict(row) for row in nodes])
            if gone_node_ids:
                await connection.execute(sa.delete(_node).where(_node.c.node_id.in_(gone_node_ids)))

    async def delete_model(self, name: str) -> None:
        """Deletes a model; does nothing when there is none of that name."""
        async with transaction(self._engine) as connection:
            await connection.execute(sa.delete(_model).where(_model.c.name == name))


def _upsert(table: sa.Table, keep: Sequence[str] = ()) -> sa.Executable:
    statement = insert(table)
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key.columns),
        set_={
            column.name: statement.excluded[column.name]
            for column in table.columns
            if not column.primary_key and column.name not in keep
        },
    )


def _node_row(row: Any) -> NodeRow:
    models = tuple(
        ServedModelRow(**{**model, "capabilities": tuple(model["capabilities"])})
        for model in row["models"]
    )
    return NodeRow(**{**row, "models": models})


def _model_row(row: Any) -> ModelRow:
    return ModelRow(**{**row, "capabilities": tuple(row["capabilities"])})
