"""What the proxy needs to know of an engine's dialect.

Tokens are counted in two ways: `Engine.count_tokens` counts a bare text, `Engine.count_prompt` the
prompt of a chat as the model reads it, template and tools included. Whatever counts the prompts of
callers (Anthropic's `count_tokens`, the typed `CountTokens`) asks the second through
`services.inference.prompt_counter`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.inference.engines.asks import Ranking, RerankAsk, TokenizeAsk, Tokenized
from services.inference.http_client import EngineClient
from services.inference.requests import OpenAIRequest

_MAX_INT32 = 2**31 - 1


class EngineNotReadyError(Exception):
    """The engine answers, but not yet with what a node must know to join."""


class Translator(Protocol):
    """Makes OpenAI's server-sent events of one answer's body in another form."""

    def feed(self, piece: bytes) -> bytes:
        """Returns the events that are complete now; b"" where none is.

        Raises:
            EngineConnectionError: The body is not what the engine's dialect says it is.
        """
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """How a request is put to the engine.

    Attributes:
        path: The engine's path.
        body: The JSON to send.
        is_folded: Whether the engine streams an answer that the caller wants in one piece.
        hides_usage: Whether the stream carries usage that the caller did not ask for.
        hides_progress: Whether the stream carries progress that the caller did not ask for.
        translator: Makes the translator of a stream; None where the engine speaks OpenAI's form.
        mend: Makes a whole answer OpenAI's, or raises `EngineConnectionError`; None where it is.
    """

    path: str
    body: bytes
    is_folded: bool = False
    hides_usage: bool = False
    hides_progress: bool = False
    translator: Callable[[], Translator] | None = None
    mend: Callable[[bytes], bytes] | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """What an answer took; None is unknown."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None


@dataclass(frozen=True, slots=True)
class Vector:
    """A text's vector and how many tokens the text has."""

    values: list[float]
    tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the engine is; None is unknown, never 0.

    Attributes:
        running: Requests that it works on.
        queued: Requests that wait in it.
        kv_use: The share of its key-value cache in use, 0 to 1.
        slots: Requests that it works on at the same time at most.
        kv_capacity_tokens: How many tokens its key-value cache holds.
        loaded_adapters: LoRA adapters in its memory.
        instance: A number that differs after each start of it, for example the time of the start.
        work: A count that only grows for as long as it lives.
    """

    running: int | None = None
    queued: int | None = None
    kv_use: float | None = None
    slots: int | None = None
    kv_capacity_tokens: int | None = None
    loaded_adapters: tuple[str, ...] = ()
    instance: float | None = None
    work: float | None = None


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A model that the engine serves.

    What an engine does not say of a model it counts as able to do: the engine's own refusal is
    clearer than one that is guessed.

    Attributes:
        name: Its name at the engine.
        can_chat: Whether it takes chats and text completions.
        can_embed: Whether it makes vectors.
        context_length: The tokens that one request may use; 0 is unknown.
        base_model: The model whose weights this LoRA adapter changes; empty for one of its own.
        can_call_tools: Whether it takes tools.
        can_structure: Whether its answers keep to a JSON schema.
        can_see: Whether it takes pictures.
        can_hear: Whether it takes sounds.
        can_rank: Whether it is known to rank documents; most engines do not tell.
    """

    name: str
    can_chat: bool
    can_embed: bool
    context_length: int = 0
    base_model: str = ""
    can_call_tools: bool = True
    can_structure: bool = True
    can_see: bool = True
    can_hear: bool = True
    can_rank: bool = False


@dataclass(frozen=True, slots=True)
class Description:
    """What an engine is and serves. An empty version is unknown."""

    version: str
    models: tuple[EngineModel, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the operator says of an engine.

    Attributes:
        api_key: The key that the engine asks for; empty for none.
        api_version: Azure's `api-version`; empty for what is not Azure's form.
        models: What is served of what the engine has; empty for everything.
        always_streams: Whether whole answers are asked for as streams too, for endpoints that
            go on working on them after a hang-up.
        is_remote: Whether the engine is another's service on the network, asked more rarely.
    """

    api_key: str = ""
    api_version: str = ""
    models: tuple[EngineModel, ...] = ()
    always_streams: bool = False
    is_remote: bool = False


class Engine(Protocol):
    """A dialect. It may remember what it learned of its engine, nothing of single requests.

    Attributes:
        name: The dialect's name, as it stands in the registry.
        ends_with_done: Whether a stream that ends without `[DONE]` has failed.
        headers: What every request to the engine carries.
        probe_interval_s: The fewest seconds between two probes of an engine that is up.
        continuation: The fields with which it goes on with a last message that is the assistant's,
            where its answer has what follows; None where it cannot.
    """

    name: str
    ends_with_done: bool
    headers: Mapping[str, str]
    probe_interval_s: float
    continuation: Mapping[str, Any] | None

    def plan(self, request: OpenAIRequest) -> Plan:
        """Says how to put a request to the engine.

        Raises:
            MeshError: `UNSUPPORTED` with the field that the engine cannot honour, or
                `INVALID_ARGUMENT` where it can make no sense of one.
        """
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

    def embedding(
        self, model: str, text: str | list[int], dimensions: int | None = None
    ) -> tuple[str, bytes]:
        """Returns the path and the body of a request for one text's vector.

        Args:
            model: The model's name at the engine.
            text: The text, or its tokens.
            dimensions: The components that the vector is to have; None is all.

        Raises:
            MeshError: `UNSUPPORTED`: the engine takes no tokens, or cuts no vectors.
        """
        ...

    def vector(self, answer: bytes) -> Vector:
        """Reads the answer to such a request.

        Raises:
            LookupError, TypeError, ValueError: It is not what the engine's dialect says it is.
        """
        ...

    def is_too_long(self, status: int, error: dict[str, Any]) -> bool:
        """Says whether the engine refused an input to embed because of its length."""
        ...

    async def count_tokens(self, client: EngineClient, model: str, text: str) -> int | None:
        """Returns how many tokens a text to embed has, or None where the engine does not say.

        Raises:
            EngineConnectionError: It does not answer.
            EngineTimeoutError: It does not answer in time.
        """
        ...

    async def count_prompt(self, client: EngineClient, request: OpenAIRequest) -> int | None:
        """Returns how many tokens a chat's prompt has, template, tools and special tokens included.

        Args:
            client: Connections to the engine.
            request: A chat; its model is the one that would answer.

        Returns:
            The tokens, or None where the engine has no way to say.

        Raises:
            MeshError: The engine refuses the chat.
            EngineConnectionError: It does not answer.
            EngineTimeoutError: It does not answer in time.
        """
        ...

    def thinking(self, model: str, budget: int | None) -> dict[str, Any] | None:
        """Returns the fields that say how much a model thinks before it answers.

        Args:
            model: The model that answers.
            budget: The most tokens to think; 0 for not at all; None leaves it to the model.

        Returns:
            The fields, or None where the engine cannot keep to that.
        """
        ...

    def reranking(self, ask: RerankAsk) -> tuple[str, bytes]:
        """Returns the path and the body of a request for a ranking.

        Raises:
            MeshError: `UNSUPPORTED`: the engine ranks nothing.
        """
        ...

    def ranking(self, answer: bytes) -> Ranking:
        """Reads the answer to such a request.

        Raises:
            LookupError, TypeError, ValueError: It is not what the engine's dialect says it is.
        """
        ...

    async def tokenize(self, client: EngineClient, ask: TokenizeAsk) -> Tokenized | None:
        """Has the engine cut something into tokens; None where it has no way to.

        Raises:
            MeshError: The engine refuses.
            EngineConnectionError: It does not answer.
            EngineTimeoutError: It does not answer in time.
        """
        ...

    async def detokenize(self, client: EngineClient, model: str, tokens: list[int]) -> str | None:
        """Has the engine make a text of tokens; None where it has no way to. Raises like above."""
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
        """Asks the engine how busy it is.

        Returns:
            Its load, or None when it takes no requests.

        Raises:
            EngineConnectionError: It does not answer.
            EngineTimeoutError: It does not answer in time.
        """
        ...


def objects_of(value: object) -> list[dict[str, Any]]:
    """Returns the objects in a list that another program sent; empty where it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def count_of(value: object) -> int | None:
    """Returns a count as the contracts can carry it, or None where it is none."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_INT32:
        return int(value)
    return None


def share_of(value: object) -> float | None:
    """Returns a share from 0 to 1, or None where it is none."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        # Engines round: a full cache may read as a little more than 1.
        return min(float(value), 1.0) if 0 <= value <= 1.01 else None
    return None


def tokens_of(usage: dict[str, Any]) -> Tokens:
    """Returns what OpenAI's usage object says."""
    details = usage.get("prompt_tokens_details")
    return Tokens(
        prompt=count_of(usage.get("prompt_tokens")),
        completion=count_of(usage.get("completion_tokens")),
        cached=count_of(details.get("cached_tokens")) if isinstance(details, dict) else None,
    )
