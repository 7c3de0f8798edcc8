"""The tables of the schema `metrics`. Money is numeric, in US dollars."""

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
    sa.Column("project", sa.Text, nullable=False, server_default="default"),
    # Empty where it is `model`.
    sa.Column("requested_model", sa.Text, nullable=False, server_default=""),
    # Whether auth reserved tokens for it, so that they have to be settled.
    sa.Column("reserved", sa.Boolean, nullable=False, server_default=sa.false()),
    # By the prices of when it was written; NULL is unknown.
    sa.Column("cost", sa.Numeric),
    sa.Index("ledger_by_time", "start_time", "request_id"),
    sa.Index("ledger_by_key", "key_id", "start_time", "request_id"),
)
"""One row for each request: of several attempts, the one that answered, else the highest."""

usage_daily = sa.Table(
    "usage_daily",
    metadata,
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("project", sa.Text, primary_key=True, server_default="default"),
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("request_count", sa.BigInteger, nullable=False),
    sa.Column("failed_count", sa.BigInteger, nullable=False),
    sa.Column("unknown_count", sa.BigInteger, nullable=False),
    sa.Column("unpriced_count", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    # Of the requests whose cost is known.
    sa.Column("cost", sa.Numeric, nullable=False, server_default="0"),
)
"""The ledger's sums by day (UTC), changed in the transaction that changes the ledger."""

scope_totals = sa.Table(
    "scope_totals",
    metadata,
    # LIMIT_PERIOD_DAY or LIMIT_PERIOD_MONTH, and its first day (UTC).
    sa.Column("period", sa.SmallInteger, primary_key=True),
    sa.Column("start", sa.Date, primary_key=True),
    # A tenant; a tenant and a project; a key; or a key and a model as callers name it. The rest is
    # empty.
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.Numeric, nullable=False),
    # Rises with every change.
    sa.Column("version", sa.BigInteger, nullable=False),
)
"""What limits by day and month go by, changed in the transaction that changes the ledger."""

prices = sa.Table(
    "prices",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    # For a million tokens.
    sa.Column("input", sa.Numeric, nullable=False),
    # NULL is as `input`.
    sa.Column("cached_input", sa.Numeric),
    sa.Column("output", sa.Numeric, nullable=False),
    sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
)
"""What models cost now."""

unsettled = sa.Table(
    "unsettled",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("request_id", sa.Text, nullable=False),
    # Which totals the request changed.
    sa.Column("day", sa.Date, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
)
"""What auth is still to be told of, written in the transaction that changes the ledger."""
