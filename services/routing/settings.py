"""Routing's settings."""

from pathlib import Path

from pydantic import Field, SecretStr

from services.kit.audit_settings import AuditedSettings
from services.routing.prefix_index import DEFAULT_MAX_ENTRIES


class RoutingSettings(AuditedSettings):
    """What routing needs to run."""

    state_dir: Path = Path(".infermesh/routing")
    registry_address: str = Field(
        pattern=r"^\S+:\d+$", description="Address and port of the registry's gRPC server."
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="`postgresql+asyncpg://user:password@host:port/database`, where policies and "
        "splits are kept. Without it they live as long as the process.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="`redis://…`, over which replicas tell each other what they sent where. "
        "Without it each knows its own only.",
    )
    prefix_index_entries: int = Field(
        default=DEFAULT_MAX_ENTRIES,
        ge=1000,
        le=100_000_000,
        description="The most blocks that the prefix index holds, about 400 bytes each.",
    )
