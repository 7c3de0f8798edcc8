"""The settings of an inference proxy."""

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, StringConstraints, field_validator, model_validator

from services.inference.child import COMMANDS
from services.inference.engines.dialect import EngineModel, EngineOptions
from services.inference.node_settings import NodeSettings

_HOST_AND_PORT = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$"
_HostAndPort = Annotated[str, StringConstraints(pattern=_HOST_AND_PORT)]


class InferenceSettings(NodeSettings):
    """Where the engine is, where the mesh is, and what the node is called in it."""

    advertise: str = Field(
        default="",
        pattern=f"^$|{_HOST_AND_PORT}",
        description="IP address and port by which Envoy reaches this node. Default: `listen`.",
    )
    engine: Literal[
        "auto", "llamacpp", "ollama", "openai", "sglang", "sim", "tei", "tgi", "vllm"
    ] = Field(default="auto", description="The engine's dialect; `auto` asks the engine.")
    engine_url: str = Field(
        description="Where the engine listens, `http://host:port` or `https://host`."
    )
    engine_api_key: SecretStr = Field(
        default=SecretStr(""), description="The key that the engine asks for."
    )
    engine_api_version: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]{0,64}$",
        description="Azure OpenAI's `api-version`; makes the requests Azure's, for `openai` only.",
    )
    engine_models: str = Field(
        default="",
        description="The models to serve, `name,name`, of those that the engine has; one that "
        "makes vectors is `name=embeddings`. Default: all of them.",
    )
    engine_always_streams: bool = Field(
        default=False,
        description="Ask for whole answers as streams too, for an `openai` endpoint that goes on "
        "working on them after a hang-up.",
    )
    engine_idle_timeout_s: float = Field(
        default=120.0,
        gt=0,
        le=3600,
        description="The longest silence of the engine's in an answer.",
    )
    engine_total_timeout_s: float = Field(
        default=3600.0,
        gt=0,
        le=86_400,
        description="The longest that an answer may take once the engine has the request.",
    )
    keepalive_s: float = Field(
        default=0.0,
        ge=0,
        le=300,
        description="After how long a silence a stream's caller is sent a comment, and again; 0 "
        "is never. After one, Envoy tries no other node for the request.",
    )
    response_cache_mib: int = Field(
        default=64,
        ge=0,
        le=65_536,
        description="Memory for answers that are given again to whoever asks for that; 0 is none.",
    )
    response_cache_answer_kib: int = Field(
        default=1024, ge=1, le=65_536, description="The largest answer that is kept."
    )
    response_cache_ttl_s: float = Field(
        default=3600.0, gt=0, le=2_592_000, description="How long an answer is given again."
    )
    response_cache_models: str = Field(
        default="",
        max_length=4096,
        description="Models whose answers at temperature 0 are kept though the request does not "
        "ask for it, `name,name`, with `*` for any characters. Default: none.",
    )
    semantic_cache_models: str = Field(
        default="",
        max_length=4096,
        description="Models whose answers are given to questions in other words too, where the "
        "request may have an earlier answer at all, `name,name`, with `*` for any characters. "
        "Default: none.",
    )
    semantic_cache_embedding_model: str = Field(
        default="",
        max_length=200,
        description="The model of the mesh whose vectors say how near two questions are.",
    )
    semantic_cache_threshold: float = Field(
        default=0.95, ge=0.5, le=1, description="How near is near enough, as a cosine."
    )
    semantic_cache_vectors: int = Field(
        default=4096, ge=1, le=1_000_000, description="The most questions that are remembered."
    )
    semantic_cache_timeout_ms: float = Field(
        default=250.0, gt=0, le=10_000, description="How long a request waits for its vector."
    )
    mesh_address: str = Field(
        pattern=_HOST_AND_PORT.replace("^", r"^(https?://)?", 1),
        description="The mesh's front door, `host:port`, or `https://host:port` for TLS.",
    )
    engine_slots: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Requests that the engine runs at a time. Default: what it says itself.",
    )
    max_in_flight: int = Field(
        default=1024,
        ge=1,
        le=100_000,
        description="The most requests that the engine is given at a time.",
    )
    max_queued: int = Field(
        default=256, ge=0, le=10_000, description="The most requests that wait for the engine."
    )
    max_queue_wait_s: float = Field(
        default=30.0, gt=0, le=3600, description="The longest that a request waits for the engine."
    )

    @field_validator("engine_url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must look like http://host:port or https://host")
        if parts.query or parts.fragment or parts.username is not None:
            raise ValueError("must have no query, fragment or user in it")
        # OpenAI's clients are given the address with the version, engines without.
        return url.rstrip("/").removesuffix("/v1")

    @field_validator("engine_api_key")
    @classmethod
    def _check_key(cls, key: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[\x21-\x7e]{0,4096}", key.get_secret_value()):
            raise ValueError("must be one word of plain characters")
        return key

    @field_validator("engine_models")
    @classmethod
    def _check_models(cls, models: str) -> str:
        _models(models)
        return models

    @model_validator(mode="after")
    def _check_advertise(self) -> Self:
        if not self.advertise and re.match(r"(0\.0\.0\.0|\[::\]):", self.listen):
            raise ValueError("INFERMESH_ADVERTISE must be set when listening on every address")
        return self

    @model_validator(mode="after")
    def _check_run(self) -> Self:
        if not self.run_model:
            return self
        if self.engine not in COMMANDS:
            raise ValueError(f"INFERMESH_RUN_MODEL is for the engines {', '.join(COMMANDS)}")
        parts = urlsplit(self.engine_url)
        if parts.hostname != "127.0.0.1" or not parts.port:
            raise ValueError("INFERMESH_ENGINE_URL must be http://127.0.0.1:PORT for RUN_MODEL")
        return self

    @model_validator(mode="after")
    def _check_semantic_cache(self) -> Self:
        if not self.semantic_cache_models:
            return self
        if not self.semantic_cache_embedding_model:
            raise ValueError("INFERMESH_SEMANTIC_CACHE_EMBEDDING_MODEL must be set")
        if not self.response_cache_mib:
            raise ValueError("INFERMESH_RESPONSE_CACHE_MIB must not be 0 for a semantic cache")
        return self

    @model_validator(mode="after")
    def _check_azure(self) -> Self:
        if not self.engine_api_version:
            return self
        if self.engine != "openai":
            raise ValueError("INFERMESH_ENGINE_API_VERSION is for the engine `openai`")
        if not self.engine_models:
            raise ValueError("INFERMESH_ENGINE_MODELS must name the deployments: Azure lists none")
        return self

    @property
    def engine_options(self) -> EngineOptions:
        """What the operator says of the engine."""
        return EngineOptions(
            api_key=self.engine_api_key.get_secret_value(),
            api_version=self.engine_api_version,
            models=_models(self.engine_models),
            always_streams=self.engine_always_streams,
            is_remote=self.engine_url.startswith("https:"),
        )

    @property
    def address(self) -> str:
        """Where Envoy reaches this node."""
        return self.advertise or self.listen


def _models(text: str) -> tuple[EngineModel, ...]:
    """Reads the list of models. Raises `ValueError`."""
    models = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, use = entry.partition("=")
        if not name or use not in ("", "chat", "embeddings"):
            raise ValueError("must look like name,name=embeddings")
        is_embedding = use == "embeddings"
        models.append(EngineModel(name, can_chat=not is_embedding, can_embed=is_embedding))
    return tuple(models)
