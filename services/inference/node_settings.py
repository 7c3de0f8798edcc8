"""What the operator says of the node itself: how it gets in, how it is chosen, what it runs."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, SecretStr, StringConstraints, model_validator

from services.kit.settings import ServiceSettings

_LabelName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_.-]{0,62}$")]
_LabelValue = Annotated[str, StringConstraints(max_length=200)]
_Price = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class NodeSettings(ServiceSettings):
    """The node's way into the mesh, and its place there."""

    node_id: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="The node's name in the mesh."
    )
    mesh_ca: Path | None = Field(
        default=None,
        description="PEM file with whom the node trusts at an https front door. Default: whom the "
        "system trusts.",
    )
    mesh_name: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9.:-]{0,253}$",
        description="The front door's name in its certificate, where it is not the address's.",
    )
    node_certificate: bool = Field(
        default=False,
        description="Whether the node asks the mesh for its certificate, kept in `tls_dir`.",
    )
    tls_allow: tuple[str, ...] = Field(
        default=("envoy", "service/registry", "service/metrics", "service/supervisor"),
        description="Whom the node admits, by the names in certificates, as JSON.",
    )
    node_key: SecretStr = Field(
        default=SecretStr(""), description="The node's key to the mesh, where it has no token."
    )
    node_token: SecretStr = Field(
        default=SecretStr(""), description="A join token, which the node exchanges for its key."
    )
    state_dir: Path = Field(
        description="Folder for the node's key, and for usage that the ledger does not have yet."
    )
    labels: dict[_LabelName, _LabelValue] = Field(
        default={}, max_length=32, description="For policies to choose by, as JSON."
    )
    tier: int = Field(
        default=0, ge=0, le=9, description="Nodes of a lower tier are preferred: 0 to 9."
    )
    prices: dict[str, tuple[_Price, _Price]] = Field(
        default={},
        max_length=256,
        description="US dollars for a million tokens of the prompt and of the answer, by model, as "
        'JSON: `{"m": [0.5, 1.5]}`.',
    )
    run_model: str = Field(
        default="",
        pattern=r"^([^-].*)?$",
        description="The model with which the node runs its engine itself, at `engine_url`, which "
        "is then on this machine: a GGUF file, or a name that the engine knows.",
    )
    run_args: list[str] = Field(
        default=[], description="Further arguments of the engine that the node runs, as JSON."
    )

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        if not self.node_key.get_secret_value() and not self.node_token.get_secret_value():
            raise ValueError("INFERMESH_NODE_KEY or INFERMESH_NODE_TOKEN must be set")
        return self

    @model_validator(mode="after")
    def _check_certificate(self) -> Self:
        if self.node_certificate and self.tls_dir is None:
            raise ValueError("INFERMESH_TLS_DIR must be set for INFERMESH_NODE_CERTIFICATE")
        return self
