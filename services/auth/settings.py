"""What the auth service is told by its environment."""

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
