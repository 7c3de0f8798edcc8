"""What the auth service is told by its environment."""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from services.auth import secret
from services.kit.settings import ServiceSettings


class AuthSettings(ServiceSettings):
    """The settings of the auth service."""

    database_url: SecretStr = Field(
        description="`postgresql+asyncpg://user:password@host:port/database`."
    )
    key_hash_secret: SecretStr = Field(
        min_length=32,
        description="Keys the hashes of API keys. With another value no stored key is valid.",
    )
    bootstrap_admin_key: SecretStr | None = Field(
        default=None, description="The secret of an admin key that exists from the start."
    )
    bootstrap_node_key: SecretStr | None = Field(
        default=None, description="The secret of a node key that exists from the start."
    )

    state_dir: Path = Field(
        default=Path(".infermesh/auth"),
        description="A folder; audit events wait in `audit/` there until PostgreSQL has them.",
    )
    audit_retention_days: int = Field(
        default=365,
        ge=0,
        le=36500,
        description="After how many days audit events are removed; 0 keeps them for good.",
    )
    audit_inference: bool = Field(
        default=False, description="Whether each inference call is an audit event too."
    )

    @field_validator("bootstrap_admin_key", "bootstrap_node_key")
    @classmethod
    def _check_grammar(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not secret.is_well_formed(value.get_secret_value()):
            raise ValueError("must be `im-` and 43 characters of A-Z, a-z, 0-9, `-` and `_`")
        return value

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        if self.bootstrap_admin_key and self.bootstrap_admin_key == self.bootstrap_node_key:
            raise ValueError("BOOTSTRAP_ADMIN_KEY and BOOTSTRAP_NODE_KEY must differ")
        return self
