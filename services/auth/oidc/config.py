"""What auth is told of external issuers of tokens."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import SplitResult, urlsplit

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
"""How tokens may be signed: with keys of two halves only. Whoever can check what is signed with a
shared secret (`HS256`) can sign as well, and `none` is no signature."""

RoleName = Literal["user", "auditor", "operator", "admin"]
"""The roles that a token can have; machines join with keys of the mesh's own."""

TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
"""The grammar of tenants and projects, as `key_service.proto` has it."""

_ALL: tuple[Algorithm, ...] = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)

# With these a key id, `oidc:<name>:` and 22 characters, has at most 64.
_NAME = r"^[a-z0-9][a-z0-9_-]{0,31}$"

_Tenant = Annotated[str, Field(pattern=f"^{TENANT.pattern}$")]
_Claim = Annotated[str, Field(min_length=1, max_length=200)]


class IssuerSettings(BaseModel):
    """One issuer, and what its tokens may do here.

    A claim is named by its name, or by a path of names with dots between them, as in
    `realm_access.roles`; a claim whose name has dots in it is found first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        pattern=_NAME, description="Stands in the ids of its callers: `oidc:<name>:…`."
    )
    issuer: str = Field(
        max_length=500, description="The claim `iss` of its tokens, to the letter: an https URL."
    )
    audience: tuple[str, ...] = Field(
        min_length=1, max_length=20, description="One of these must be in the claim `aud`."
    )
    jwks_uri: str | None = Field(
        default=None, max_length=500, description="Where its keys are; else discovery says it."
    )
    ca_file: Path | None = Field(
        default=None, description="Certificates to trust its server by; else the system's."
    )
    algorithms: frozenset[Algorithm] = Field(default=frozenset(_ALL), min_length=1)
    tenant: _Tenant | None = Field(default=None, description="The tenant of all its tokens.")
    tenant_claim: _Claim | None = Field(default=None, description="The claim that names it.")
    project_claim: _Claim | None = Field(
        default=None, description="The claim that names the project; else it is `default`."
    )
    role_claim: _Claim | None = Field(
        default=None, description="The claim whose value, or list of values, `roles` maps."
    )
    roles: Mapping[str, RoleName] = Field(default_factory=dict, max_length=1000)
    default_role: RoleName | None = Field(
        default=None, description="The role where the claim maps to none; else such are refused."
    )
    models_claim: _Claim | None = Field(
        default=None, description="The claim with patterns of the models that the token may use."
    )
    leeway_s: int = Field(default=30, ge=0, le=300, description="How far clocks may differ.")
    max_lifetime_s: int = Field(
        default=24 * 3600,
        ge=60,
        le=366 * 24 * 3600,
        description="Tokens that live longer: refused.",
    )
    keys_max_age_s: int = Field(
        default=24 * 3600,
        ge=60,
        le=30 * 24 * 3600,
        description="For how long its keys are good when it is out of reach.",
    )

    @field_validator("audience", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("audience")
    @classmethod
    def _check_audience(cls, value: Sequence[str]) -> Sequence[str]:
        if not all(0 < len(each) <= 500 for each in value):
            raise ValueError("an audience must have 1 to 500 characters")
        return value

    @field_validator("issuer", "jwks_uri")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is not None:
            check_url(value)
        return value

    @field_validator("ca_file")
    @classmethod
    def _check_file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError("there is no such file")
        return value

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        if "?" in self.issuer or "#" in self.issuer:
            raise ValueError("issuer: must be a URL without a query and a fragment")
        if (self.tenant is None) == (self.tenant_claim is None):
            raise ValueError("give either tenant or tenant_claim")
        if (self.role_claim is None) != (not self.roles):
            raise ValueError("role_claim and roles go together")
        if self.role_claim is None and self.default_role is None:
            raise ValueError("give role_claim with roles, or default_role, or both")
        return self


def check_url(url: str) -> SplitResult:
    """Returns the parts of a URL that tokens may rest on: https, or http on this machine.

    Raises:
        ValueError: It is another.
    """
    parts = urlsplit(url)
    # The port is read on use; one that is none is found here.
    if not parts.hostname or parts.username is not None or parts.port == 0:
        raise ValueError("must be a URL with a host and without a user")
    if parts.scheme == "http" and _is_loopback(parts.hostname):
        return parts
    if parts.scheme != "https":
        raise ValueError("must be an https URL; http is for loopback addresses only")
    return parts


def read_issuers(value: Any) -> Any:
    """Returns the list that a JSON text holds; anything else as it is.

    Raises:
        ValueError: The text is no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value or "[]")
    except orjson.JSONDecodeError as error:
        raise ValueError(f"must be a JSON list of issuers: {error}") from None


def check_issuers(issuers: Sequence[IssuerSettings]) -> None:
    """Checks what single issuers cannot tell.

    Raises:
        ValueError: Two have the same name or are the same issuer.
    """
    for what in ("name", "issuer"):
        if len({getattr(each, what) for each in issuers}) < len(issuers):
            raise ValueError(f"two issuers have the same {what}")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
