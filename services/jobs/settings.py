"""What the jobs service is told by its environment."""

from pydantic import Field

from services.kit.settings import ServiceSettings

_DAY_S = 86_400
_MIB = 1024 * 1024


class JobsSettings(ServiceSettings):
    """Settings of the jobs service, read from `INFERMESH_…`."""

    database_url: str = Field(
        description="`postgresql+asyncpg://user:password@host:port/database`.",
        pattern=r"^postgresql\+asyncpg://",
    )
    database_connections: int = Field(
        default=8, ge=2, le=200, description="The most connections to PostgreSQL."
    )
    inference_address: str = Field(
        description="Where Envoy takes calls of services to the nodes, `host:port`.",
        pattern=r":\d+$",
    )
    response_ttl_s: int = Field(
        default=30 * _DAY_S,
        ge=1,
        le=3650 * _DAY_S,
        description="How long a response is kept after it was made.",
    )
    auth_address: str = Field(
        description="The auth service, which says what the keys of batches may do, `host:port`.",
        pattern=r"^\S+:\d+$",
    )
    file_max_bytes: int = Field(
        default=100 * _MIB, ge=1, le=2048 * _MIB, description="The largest file."
    )
    file_tenant_max_bytes: int = Field(
        default=10_240 * _MIB, ge=1, description="The most that one tenant's files have together."
    )
    file_ttl_s: int = Field(
        default=30 * _DAY_S,
        ge=3600,
        le=3650 * _DAY_S,
        description="How long a file is kept, and a batch after its end.",
    )
    batch_max_lines: int = Field(
        default=50_000, ge=1, le=1_000_000, description="The most lines of a batch."
    )
    batch_max_active: int = Field(
        default=100, ge=1, le=10_000, description="The most batches of a tenant that are not over."
    )
    batch_concurrency: int = Field(
        default=8, ge=1, le=1000, description="The most lines that this process runs at a time."
    )
    batch_lease_s: float = Field(
        default=15.0,
        ge=1,
        le=600,
        description="After how long without a sign of life a process counts as dead.",
    )
