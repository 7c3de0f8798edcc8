"""What the metrics service is told by its environment."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from services.kit.audit_settings import AuditedSettings


class MetricsSettings(AuditedSettings):
    """Settings of the metrics service, read from `INFERMESH_…`."""

    state_dir: Path = Path(".infermesh/metrics")
    database_url: str = Field(
        description="`postgresql+asyncpg://user:password@host:port/database`.",
        pattern=r"^postgresql\+asyncpg://",
    )
    parts: Annotated[dict[str, str], NoDecode] = Field(
        default={},
        description="The services whose health is asked for: `auth=127.0.0.1:17001,registry=…`.",
    )

    @field_validator("parts", mode="before")
    @classmethod
    def _split_parts(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        parts: dict[str, str] = {}
        for item in filter(None, (item.strip() for item in value.split(","))):
            name, _, address = item.partition("=")
            if not name or ":" not in address:
                raise ValueError(f"`{item}` is not `name=host:port`")
            parts[name] = address
        return parts
