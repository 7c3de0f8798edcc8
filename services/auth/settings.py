"""What the auth service is told by its environment."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from services.auth import secret
from services.auth.oidc.config import IssuerSettings, check_issuers, read_issuers
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
    ca_dir: Path | None = Field(
        default=None,
        description="Folder with the authority that signs nodes' certificates: `ca.pem` and "
        "`ca-key.pem`. Without it nodes get none.",
    )
    audit_retention_days: int = Field(
        default=365,
        ge=0,
        le=36500,
        description="After how many days audit events are removed; 0 keeps them for good.",
    )
    audit_inference: Literal["off", "metadata", "bodies"] = Field(
        default="off",
        description="`metadata` makes each inference call an audit event; `bodies` adds what was "
        "asked, as the node tells it: its form, without its texts.",
    )

    oidc_issuers: Annotated[tuple[IssuerSettings, ...], NoDecode] = Field(
        default=(),
        max_length=20,
        description="A JSON list of the issuers whose tokens are good here; see docs/oidc.md.",
    )

    @field_validator("oidc_issuers", mode="before")
    @classmethod
    def _read_issuers(cls, value: Any) -> Any:
        return read_issuers(value)

    @field_validator("oidc_issuers")
    @classmethod
    def _check_issuers(cls, value: tuple[IssuerSettings, ...]) -> tuple[IssuerSettings, ...]:
        check_issuers(value)
        return value

    redis_url: SecretStr | None = Field(
        default=None,
        description="`redis://…`, where all replicas count what is used of limits. Without it no "
        "limits can be set.",
    )
    metrics_address: str | None = Field(
        default=None,
        pattern=r"^\S+:\d+$",
        description="Address and port of the metrics service, which knows sums and prices. Without "
        "it no limits by day or month can be set.",
    )
    routing_address: str | None = Field(
        default=None,
        pattern=r"^(unix:/\S+|\S+:\d+)$",
        description="Address and port of the routing service, or `unix:` and the path of its "
        "socket. Without it Envoy balances calls by itself.",
    )
    limits_without_redis: Literal["local", "refuse"] = Field(
        default="local",
        description="What happens to limited calls while Redis is away: `local` lets in this "
        "replica's share of what was left, `refuse` refuses them.",
    )
    reservation_s: int = Field(
        default=900,
        ge=10,
        le=86400,
        description="After how many seconds a call of which nothing is heard gives back what it "
        "was reserved.",
    )
    bytes_per_token: int = Field(
        default=4, ge=1, le=64, description="How many bytes of a prompt are reserved as one token."
    )
    default_max_tokens: int = Field(
        default=1024,
        ge=0,
        le=2**31 - 1,
        description="How many tokens of an answer are reserved where the call does not say.",
    )
    max_reservation_tokens: int = Field(
        default=32768,
        ge=1,
        le=2**31 - 1,
        description="The most tokens that any call is reserved.",
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
