"""The settings of services whose administrative calls the audit log tells of."""

from pathlib import Path

from pydantic import Field

from services.kit.settings import ServiceSettings


class AuditedSettings(ServiceSettings):
    """Where auth is, and where what it is to be told waits for it."""

    auth_address: str | None = Field(
        default=None,
        pattern=r"^\S+:\d+$",
        description="Address and port of auth's gRPC server. Without it the audit log does not "
        "tell how administrative calls to this service end.",
    )
    state_dir: Path = Field(
        default=Path(".infermesh"),
        description="A folder; audit events wait in `audit/` there until auth has them.",
    )
