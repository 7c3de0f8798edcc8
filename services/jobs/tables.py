"""The tables of the schema `jobs`."""

import sqlalchemy as sa

metadata = sa.MetaData(schema="jobs")

responses = sa.Table(
    "responses",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    # The response that it goes on from.
    sa.Column("previous_id", sa.Text),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("expire_time", sa.DateTime(timezone=True), nullable=False, index=True),
    # OpenAI's object and the items of this turn's input, as JSON: PostgreSQL's own type has no
    # room for every text that JSON has.
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("input", sa.LargeBinary, nullable=False),
)

files = sa.Table(
    "files",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    # False while it is being written: nobody sees it then.
    sa.Column("is_whole", sa.Boolean, nullable=False),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("expire_time", sa.DateTime(timezone=True), nullable=False, index=True),
    sa.Index("files_by_owner", "tenant", "project", "create_time", "id"),
)

file_pieces = sa.Table(
    "file_pieces",
    metadata,
    sa.Column(
        "file_id", sa.Text, sa.ForeignKey("jobs.files.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("completion_window", sa.Text, nullable=False),
    sa.Column("input_file_id", sa.Text, nullable=False),
    sa.Column("output_file_id", sa.Text),
    sa.Column("error_file_id", sa.Text),
    sa.Column("metadata", sa.LargeBinary, nullable=False),
    # Why it failed as a whole, as JSON.
    sa.Column("errors", sa.LargeBinary),
    sa.Column("total", sa.Integer, nullable=False, server_default="0"),
    sa.Column("completed", sa.Integer, nullable=False, server_default="0"),
    sa.Column("failed", sa.Integer, nullable=False, server_default="0"),
    # Who reads its input now, and until when that is believed.
    sa.Column("worker", sa.Text),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("due_time", sa.DateTime(timezone=True), nullable=False),
    sa.Column("begin_time", sa.DateTime(timezone=True)),
    sa.Column("cancel_time", sa.DateTime(timezone=True)),
    sa.Column("finalize_time", sa.DateTime(timezone=True)),
    sa.Column("end_time", sa.DateTime(timezone=True)),
    sa.Index("batches_by_owner", "tenant", "project", "create_time", "id"),
    sa.Index("batches_by_status", "status", "create_time"),
)

lines = sa.Table(
    "batch_lines",
    metadata,
    sa.Column(
        "batch_id", sa.Text, sa.ForeignKey("jobs.batches.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("custom_id", sa.Text),
    # `waiting`, `running`, `done`, `failed`.
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary),
    sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
    # Not before this is it tried again.
    sa.Column("wait_until", sa.DateTime(timezone=True)),
    sa.Column("worker", sa.Text),
    # The line of the output or error file, as JSON.
    sa.Column("result", sa.LargeBinary),
    sa.Index("batch_lines_by_state", "state", "batch_id", "number"),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    # A worker that is not heard of by then is dead.
    sa.Column("lease_time", sa.DateTime(timezone=True), nullable=False),
)
