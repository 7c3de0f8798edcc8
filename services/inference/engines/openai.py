"""Any endpoint that speaks OpenAI's HTTP: OpenAI itself, Azure OpenAI, other gateways.

Two forms:

* OpenAI's: `/v1/…`, the key as a bearer token.
* Azure's, where an `api-version` is set: `/openai/deployments/{model}/…?api-version=…`, the key in
  the header `api-key`. A model's name is then a deployment's, and Azure's data plane does not list
  them: they are configured.

A hang-up closes the connection. Whether the endpoint then stops is its own; where it goes on
working on whole answers, `always_streams` asks for streams, which end with their connection.
"""

from typing import Any
from urllib.parse import quote

from services.inference.engines.dialect import (
    Description,
    EngineModel,
    EngineOptions,
    Load,
    count_of,
)
from services.inference.engines.pages import get, get_json
from services.inference.engines.standard import Standard, listed
from services.inference.http_client import EngineClient
from services.inference.requests import OpenAIRequest

# A cloud counts requests: it is asked rarely, and a call that fails tells sooner.
_REMOTE_PROBE_INTERVAL_S = 30.0
_AZURE_PATHS = {"chat": "chat/completions", "completion": "completions"}


class OpenAICompatible(Standard):
    """The dialect of OpenAI-compatible endpoints of which nothing more is known.

    The load is what the proxy itself has running there.
    """

    name = "openai"
    # Not all of them send it; those that do not end the stream properly all the same.
    ends_with_done = False

    def __init__(self, options: EngineOptions | None = None) -> None:
        super().__init__(options)
        self.folds = self._options.always_streams
        self.probe_interval_s = _REMOTE_PROBE_INTERVAL_S if self._options.is_remote else 0.0
        self._version = self._options.api_version
        if self._version and self._options.api_key:
            self.headers = {"api-key": self._options.api_key}
        # A cloud has no health page, and says with its list of models that the key is good.
        self._health_path = "/v1/models" if self._options.is_remote else "/health"
        if self._version:
            self._health_path = f"/openai/models?api-version={quote(self._version)}"

    def _path(self, request: OpenAIRequest) -> str:
        if not self._version:
            return super()._path(request)
        return self._deployment(request.model, _AZURE_PATHS[request.kind])

    def _deployment(self, model: str, operation: str) -> str:
        return (
            f"/openai/deployments/{quote(model, safe='')}/{operation}"
            f"?api-version={quote(self._version)}"
        )

    def embedding(
        self, model: str, text: str | list[int], dimensions: int | None = None
    ) -> tuple[str, bytes]:
        """Asks for the vector as numbers, in the form of the endpoint."""
        path, body = super().embedding(model, text, dimensions)
        return (self._deployment(model, "embeddings") if self._version else path), body

    async def describe(self, client: EngineClient) -> Description:
        """Asks `/v1/models`, unless the models are configured; does not say what each can do."""
        if self._options.models:
            return Description(version=self._version, models=self._remember([]))
        models = [_model(entry) for entry in listed(await get_json(client, "/v1/models"))]
        return Description(version="", models=self._remember(models))

    async def probe(self, client: EngineClient) -> Load | None:
        """Asks `/health`, or `/v1/models` where that is not there."""
        status, _ = await get(client, self._health_path)
        if status == 404 and self._health_path == "/health":
            self._health_path = "/v1/models"
            status, _ = await get(client, self._health_path)
        return Load() if status == 200 else None


def _model(entry: dict[str, Any]) -> EngineModel:
    parent = entry.get("parent")
    length = count_of(entry.get("max_model_len")) or count_of(entry.get("context_length")) or 0
    return EngineModel(
        name=entry["id"],
        can_chat=True,
        can_embed=False,
        context_length=length,
        base_model=parent if isinstance(parent, str) else "",
    )
