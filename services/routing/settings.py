"""Routing's settings."""

from pydantic import Field

from services.kit.settings import ServiceSettings


class RoutingSettings(ServiceSettings):
    """What routing needs to run."""

    registry_address: str = Field(
        pattern=r"^\S+:\d+$", description="Address and port of the registry's gRPC server."
    )
