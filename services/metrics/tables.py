"""The tables of the schema `metrics`."""

import sqlalchemy as sa

metadata = sa.MetaData(schema="metrics")

ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("node_id", sa.Text, nullable=False),
    sa.Column("operation", sa.SmallInteger, nullable=False),
    sa.Column("streamed", sa.Boolean, nullable=False),
    sa.Column("outcome", sa.SmallInteger, nullable=False),
    # NULL is unknown, in all that follow but the start.
    sa.Column("prompt_tokens", sa.Integer),
    sa.Column("completion_tokens", sa.Integer),
    sa.Column("cached_tokens", sa.Integer),
    sa.Column("start_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("time_to_first_token_us", sa.BigInteger),
    sa.Column("duration_us", sa.BigInteger),
    sa.Index("ledger_by_time", "start_time", "request_id"),
    sa.Index("ledger_by_key", "key_id", "start_time", "request_id"),
)
"""One row for each request: of several attempts, the one that answered, else the highest."""

usage_daily = sa.Table(
    "usage_daily",
    metadata,
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("request_count", sa.BigInteger, nullable=False),
    sa.Column("failed_count", sa.BigInteger, nullable=False),
    sa.Column("unknown_count", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
)
"""The ledger's sums by day (UTC), changed in the transaction that changes the ledger."""
