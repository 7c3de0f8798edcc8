"""The settings that every service has; each service's own derive from `ServiceSettings`.

Settings come from the environment, are validated once at start, and never change after.
"""

import sys
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """What a service needs to run at all."""

    model_config = SettingsConfigDict(env_prefix="INFERMESH_", frozen=True)

    listen: str = Field(default="127.0.0.1:0", description="Address and port of the gRPC server.")
    listen_socket: Path | None = Field(
        default=None,
        description="A Unix socket to listen on too, for Envoy on the same machine, in a folder "
        "that only the mesh's user may enter. Not with TLS, nor with several workers.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes that share the port, for auth and embeddings only; see "
        "docs/performance.md.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    drain_s: float = Field(
        default=5.0,
        ge=0,
        le=3600,
        description="Seconds that running calls may finish in after SIGTERM.",
    )
    tls_dir: Path | None = Field(
        default=None,
        description="Folder with `ca.pem`, `cert.pem` and `key.pem`: the service then speaks TLS, "
        "with clients that have a certificate only. Default: no TLS, for loopback.",
    )
    tls_allow: tuple[str, ...] = Field(
        default=("envoy", "service/*"),
        description="Whom the service admits, by the names in certificates, as JSON.",
    )


S = TypeVar("S", bound=ServiceSettings)


def load(settings: type[S]) -> S:
    """Reads the settings from the environment.

    Returns:
        The validated settings.

    Raises:
        SystemExit: Status 2, with one line on standard error for each setting that is wrong.
    """
    try:
        return settings()
    except ValidationError as error:
        prefix = str(settings.model_config.get("env_prefix", ""))
        for problem in error.errors():
            name = prefix + "_".join(str(part) for part in problem["loc"]).upper()
            print(f"{name}: {problem['msg']}", file=sys.stderr)
        raise SystemExit(2) from None
