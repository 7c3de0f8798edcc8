"""The settings of an inference proxy."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, StringConstraints, field_validator, model_validator

from services.kit.settings import ServiceSettings

_HOST_AND_PORT = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$"
_HostAndPort = Annotated[str, StringConstraints(pattern=_HOST_AND_PORT)]


class InferenceSettings(ServiceSettings):
    """Where the engine is, where the mesh is, and what the node is called in it."""

    advertise: str = Field(
        default="",
        pattern=f"^$|{_HOST_AND_PORT}",
        description="IP address and port by which Envoy reaches this node. Default: `listen`.",
    )
    node_id: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="The node's name in the mesh."
    )
    engine: Literal["llamacpp", "openai"] = Field(description="The engine's dialect.")
    engine_url: str = Field(description="Where the engine listens, `http://host:port`.")
    engine_idle_timeout_s: float = Field(
        default=120.0,
        gt=0,
        le=3600,
        description="The longest silence of the engine's in an answer.",
    )
    mesh_address: _HostAndPort = Field(description="The mesh's front door, `host:port`.")
    node_key: SecretStr = Field(min_length=1, description="The node's key to the mesh.")
    state_dir: Path = Field(description="Folder for usage that the ledger does not have yet.")
    max_in_flight: int = Field(
        default=1024, ge=1, le=100_000, description="Requests that the node takes at a time."
    )

    @field_validator("engine_url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must look like http://host:port")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _check_advertise(self) -> Self:
        if not self.advertise and re.match(r"(0\.0\.0\.0|\[::\]):", self.listen):
            raise ValueError("INFERMESH_ADVERTISE must be set when listening on every address")
        return self

    @property
    def address(self) -> str:
        """Where Envoy reaches this node."""
        return self.advertise or self.listen
