"""What the proxy needs to know of an engine's dialect."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from services.inference.http_client import EngineClient, EngineConnectionError
from services.inference.requests import OpenAIRequest

_MAX_INT32 = 2**31 - 1


class EngineNotReadyError(Exception):
    """The engine answers, but not yet with what a node must know to join."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a request is put to the engine.

    Attributes:
        path: The engine's path.
        body: The JSON to send.
        is_folded: Whether the engine streams an answer that the caller wants in one piece.
        hides_usage: Whether the stream carries usage that the caller did not ask for.
        hides_progress: Whether the stream carries progress that the caller did not ask for.
    """

    path: str
    body: bytes
    is_folded: bool = False
    hides_usage: bool = False
    hides_progress: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """What an answer took; None is unknown."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the engine is; None is unknown, never 0."""

    running: int | None = None
    queued: int | None = None
    kv_use: float | None = None
    slots: int | None = None


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A model that the engine serves. A context length of 0 is unknown."""

    name: str
    can_chat: bool
    can_embed: bool
    context_length: int = 0


@dataclass(frozen=True, slots=True)
class Description:
    """What an engine is and serves. An empty version is unknown."""

    version: str
    models: tuple[EngineModel, ...] = field(default=())


class Engine(Protocol):
    """A dialect. It may remember what it learned of its engine, nothing of single requests.

    Attributes:
        name: The dialect's name, as it stands in the registry.
        ends_with_done: Whether a stream that ends without `[DONE]` has failed.
    """

    name: str
    ends_with_done: bool

    def plan(self, request: OpenAIRequest) -> Plan:
        """Says how to put a request to the engine."""
        ...

    def restore(self, last: bytes, usage: bytes) -> bytes:
        """Returns an answer's last event as it is when nobody asked for usage.

        Args:
            last: The event with the finish reason, or b"" where none came.
            usage: The event with the usage, which the caller does not get.
        """
        ...

    def total(self, usages: list[dict[str, Any]], request: OpenAIRequest) -> Tokens:
        """Returns what a whole request took, from the usage objects of its answer."""
        ...

    def is_too_long(self, status: int, error: dict[str, Any]) -> bool:
        """Says whether the engine refused an input to embed because of its length."""
        ...

    async def count_tokens(self, client: EngineClient, text: str) -> int | None:
        """Returns how many tokens a text to embed has, or None where the engine does not say.

        Raises:
            EngineConnectionError: It does not answer.
            EngineTimeoutError: It does not answer in time.
        """
        ...

    async def describe(self, client: EngineClient) -> Description:
        """Asks the engine what it is and serves.

        Raises:
            EngineNotReadyError: It answers, but is loading or serves no model.
            EngineConnectionError: It does not answer.
            EngineTimeoutError: It does not answer in time.
        """
        ...

    async def probe(self, client: EngineClient) -> Load | None:
        """Asks the engine in one request how busy it is.

        Returns:
            Its load, or None when it takes no requests.

        Raises:
            EngineConnectionError: It does not answer.
            EngineTimeoutError: It does not answer in time.
        """
        ...


async def get_json(client: EngineClient, path: str) -> dict[str, Any]:
    """Returns the JSON object at a path of the engine's.

    Raises:
        EngineNotReadyError: The answer is not 200 with a JSON object.
        EngineConnectionError: The engine does not answer.
        EngineTimeoutError: The engine does not answer in time.
    """
    status, body = await get(client, path)
    if status != 200:
        raise EngineNotReadyError(f"{path} answers {status}")
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise EngineNotReadyError(f"{path} is not a JSON object")
    return data


async def get(client: EngineClient, path: str) -> tuple[int, bytes]:
    """Returns the status and the body at a path of the engine's. Raises like `EngineClient`."""
    with await client.get(path) as exchange:
        return exchange.status, await exchange.read_all()


def prometheus_values(text: bytes, names: dict[bytes, str]) -> dict[str, float]:
    """Sums the samples of some metrics over their labels.

    Args:
        text: Prometheus' text format.
        names: The metrics to find, each with the key that its sum gets.
    """
    sums: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith(b"#"):
            continue
        key = names.get(line.split(b"{", 1)[0].split(b" ", 1)[0])
        if key is None:
            continue
        try:
            value = float(line.rpartition(b"}")[2].split()[0 if b"}" in line else 1])
        except (ValueError, IndexError):
            raise EngineConnectionError("the engine's metrics cannot be read") from None
        sums[key] = sums.get(key, 0.0) + value
    return sums


def count_of(value: object) -> int | None:
    """Returns a count as the contracts can carry it, or None where it is none."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_INT32:
        return int(value)
    return None


def tokens_of(usage: dict[str, Any]) -> Tokens:
    """Returns what OpenAI's usage object says."""
    details = usage.get("prompt_tokens_details")
    return Tokens(
        prompt=count_of(usage.get("prompt_tokens")),
        completion=count_of(usage.get("completion_tokens")),
        cached=count_of(details.get("cached_tokens")) if isinstance(details, dict) else None,
    )
