"""The registry's settings."""

from pathlib import Path

from pydantic import Field

from services.kit.audit_settings import AuditedSettings


class RegistrySettings(AuditedSettings):
    """What the registry needs to run."""

    state_dir: Path = Path(".infermesh/registry")
    database_url: str = Field(
        pattern=r"^postgresql\+asyncpg://",
        description="PostgreSQL, as `postgresql+asyncpg://user:password@host:port/database`.",
    )
    report_interval_s: float = Field(
        default=0.5, gt=0, le=1, description="Seconds between two reports of a node."
    )
    lease_s: float = Field(
        default=4.0,
        gt=0,
        le=600,
        description="Seconds after its latest report from which a node is offline.",
    )
