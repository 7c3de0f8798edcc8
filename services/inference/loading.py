"""Takes models into the engine's memory and drops them, where the engine can do that."""

from collections.abc import Callable
from typing import Any, Protocol

import orjson

from infermesh.errors.v1 import errors_pb2
from infermesh.registry.v1 import node_service_pb2 as pb
from services.inference import errors
from services.inference.http_client import EngineClient, Exchange
from services.kit.errors import MeshError

_MAX_ANSWER_BYTES = 64 * 1024
_MAX_LINE_BYTES = 64 * 1024
_MAX_STATUS_CHARS = 200

OnModel = Callable[[pb.ModelProgress], None]


class ModelLoader(Protocol):
    """Loads and unloads models of one engine."""

    async def load(self, model: str, source: str, on_progress: OnModel) -> None:
        """Takes a model into memory and returns when it is there.

        Args:
            model: Its name.
            source: Where the engine finds it; empty where the name says it.
            on_progress: Told how far it is.

        Raises:
            MeshError: `UNSUPPORTED`, or what the engine refuses or fails with.
            EngineConnectionError: The engine does not answer.
            EngineTimeoutError: The engine fell silent.
        """

    async def unload(self, model: str, on_progress: OnModel) -> None:
        """Drops a model from memory. Raises like `load`."""


class NoLoader:
    """For engines that serve what they were started with.

    Args:
        dialect: The engine's dialect.
    """

    def __init__(self, dialect: str) -> None:
        self._dialect = dialect

    async def load(self, model: str, source: str, on_progress: OnModel) -> None:
        """Refuses."""
        raise self._refusal()

    async def unload(self, model: str, on_progress: OnModel) -> None:
        """Refuses."""
        raise self._refusal()

    def _refusal(self) -> MeshError:
        return MeshError(
            errors_pb2.ERROR_REASON_UNSUPPORTED,
            f"An engine of the dialect `{self._dialect}` loads no models while it runs, unless "
            "its node started it: see `infermesh node --model-file` and `--serve`.",
            param="model",
        )


class OllamaLoader:
    """Ollama: pulls a model and loads it; drops it from memory and leaves it on disk.

    https://github.com/ollama/ollama/blob/main/docs/api.md: `POST /api/pull` streams one JSON object
    a line; `POST /api/generate` without a prompt loads a model, with `keep_alive` 0 it drops it.

    Args:
        client: Connections to the engine.
    """

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    async def load(self, model: str, source: str, on_progress: OnModel) -> None:
        """Pulls, then loads."""
        if source:
            raise errors.invalid("source", "Ollama finds models by their names")
        body = orjson.dumps({"model": model, "stream": True})
        with await self._client.post("/api/pull", body) as exchange:
            await _check(exchange, model)
            succeeded = False
            async for line in _lines(exchange):
                if line.get("error"):
                    raise errors.from_engine(500, {"message": line["error"]})
                status = str(line.get("status", ""))
                succeeded = status == "success"
                on_progress(_pulled(status, line))
        if not succeeded:
            raise errors.failed("The engine broke off while it pulled the model.")
        on_progress(pb.ModelProgress(status="loading"))
        # Without a time of its own it would leave again after Ollama's five minutes.
        await self._keep(model, -1)

    async def unload(self, model: str, on_progress: OnModel) -> None:
        """Drops it from memory."""
        await self._keep(model, 0)

    async def _keep(self, model: str, keep_alive: int) -> None:
        body = orjson.dumps({"model": model, "keep_alive": keep_alive, "stream": False})
        with await self._client.post("/api/generate", body) as exchange:
            await _check(exchange, model)
            await exchange.read_all(_MAX_ANSWER_BYTES)


class AdapterLoader:
    """vLLM and SGLang: LoRA adapters over the model that the engine runs.

    https://docs.vllm.ai/en/latest/features/lora.html: `POST /v1/load_lora_adapter` with `lora_name`
    and `lora_path`, once `VLLM_ALLOW_RUNTIME_LORA_UPDATING` is set. SGLang has the same without
    `/v1`.

    Args:
        client: Connections to the engine.
        prefix: What stands before the paths.
    """

    def __init__(self, client: EngineClient, prefix: str) -> None:
        self._client = client
        self._prefix = prefix

    async def load(self, model: str, source: str, on_progress: OnModel) -> None:
        """Loads an adapter."""
        if not source:
            raise errors.invalid("source", "must say where the engine finds the LoRA adapter")
        on_progress(pb.ModelProgress(status="loading"))
        await self._post("load_lora_adapter", model, {"lora_path": source})

    async def unload(self, model: str, on_progress: OnModel) -> None:
        """Drops an adapter."""
        await self._post("unload_lora_adapter", model, {})

    async def _post(self, path: str, model: str, fields: dict[str, str]) -> None:
        body = orjson.dumps({"lora_name": model, **fields})
        with await self._client.post(f"{self._prefix}/{path}", body) as exchange:
            answer = await exchange.read_all(_MAX_ANSWER_BYTES)
        if exchange.status == 200:
            return
        if exchange.status == 404 and not errors.error_of(answer).keys() & {"type", "code"}:
            # A path that is not there; of an adapter that is not there it would say more.
            raise MeshError(
                errors_pb2.ERROR_REASON_UNSUPPORTED,
                "The engine was started without leave to load LoRA adapters.",
                param="model",
            )
        raise _refusal(exchange.status, answer, model)


def loader_of(dialect: str, client: EngineClient) -> ModelLoader:
    """Returns what loads models into an engine that runs by itself."""
    match dialect:
        case "ollama":
            return OllamaLoader(client)
        case "vllm" | "sim":
            return AdapterLoader(client, "/v1")
        case "sglang":
            return AdapterLoader(client, "")
        case _:
            return NoLoader(dialect)


async def _check(exchange: Exchange, model: str) -> None:
    if exchange.status != 200:
        answer = await exchange.read_all(_MAX_ANSWER_BYTES)
        raise _refusal(exchange.status, answer, model)


def _refusal(status: int, answer: bytes, model: str) -> MeshError:
    if status != 404:
        return errors.from_response(status, answer)
    # Nothing but the model can be missing; the engine says more of it than its name.
    message = errors.error_of(answer).get("message")
    return MeshError(
        errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
        str(message or f"The engine has no `{model}`.")[:1000],
        param="model",
        metadata={"model": model},
    )


async def _lines(exchange: Exchange) -> Any:
    """Yields the JSON objects of a body, one a line."""
    rest = b""
    while piece := await exchange.read():
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            raise errors.failed("The engine's answer has a line that is too long.")
        for line in lines:
            if line.strip():
                yield _object(line)
    if rest.strip():
        yield _object(rest)


def _object(line: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(line)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise errors.failed("The engine's answer cannot be read.")
    return data


def _pulled(status: str, line: dict[str, Any]) -> pb.ModelProgress:
    progress = pb.ModelProgress(status=status[:_MAX_STATUS_CHARS])
    for field, key in (("completed_bytes", "completed"), ("total_bytes", "total")):
        value = line.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
            setattr(progress, field, value)
    return progress
