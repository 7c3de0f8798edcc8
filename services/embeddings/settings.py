"""What the embeddings service is told by its environment."""

from pathlib import Path

from pydantic import Field

from services.kit.audit_settings import AuditedSettings


class EmbeddingsSettings(AuditedSettings):
    """Settings of the embeddings service, read from `INFERMESH_…`."""

    inference_address: str = Field(
        description="Where Envoy takes calls to the embedding nodes, `host:port`.",
        pattern=r":\d+$",
    )
    metrics_address: str = Field(
        description="The metrics service, which usage is sent to, `host:port`.",
        pattern=r":\d+$",
    )
    redis_url: str = Field(description="`redis://:password@host:port`.", pattern=r"^rediss?://")
    state_dir: Path = Field(
        description="A folder of this process's own; usage and audit events wait in it."
    )
    cache_ttl_s: int = Field(
        default=7 * 86_400, ge=1, le=365 * 86_400, description="How long a vector is kept."
    )
    matryoshka_models: str = Field(
        default="",
        max_length=4096,
        description="Models whose vectors may be cut to `dimensions` here, as patterns with commas "
        "between: those that were trained for it. Of all others the engine decides.",
    )
    inference_timeout_s: float = Field(
        default=120.0, gt=0, le=3600, description="How long one call to a node may take."
    )
    batch_texts: int = Field(default=32, ge=1, le=2048, description="The most texts of a call.")
    batch_window_ms: float = Field(
        default=2.0,
        ge=0,
        le=1000,
        description="How long a text waits for company while other calls are under way.",
    )
    batch_calls: int = Field(
        default=8, ge=1, le=256, description="The most calls under way for one model."
    )
