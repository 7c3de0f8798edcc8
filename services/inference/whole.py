"""Answers that go back to their callers in one piece."""

from typing import Any

import orjson

from services.inference import errors
from services.inference.accounting import Account
from services.inference.engines.dialect import Engine, Tokens
from services.inference.fold import Fold
from services.inference.http_client import EngineConnectionError, Exchange
from services.inference.requests import OpenAIRequest
from services.inference.sse import StreamReader
from services.inference.streams import OnObjects, settle

_FOLD_STEP_BYTES = 64 * 1024


async def whole(
    exchange: Exchange, account: Account, request: OpenAIRequest, engine: Engine
) -> tuple[bytes | None, dict[str, Any]]:
    """Reads an answer that the engine gives in one piece.

    Returns:
        Its bytes where they can go out as they are, and what they say.

    Raises:
        MeshError: It is not JSON.
        EngineConnectionError: It broke off.
        EngineTimeoutError: The engine fell silent.
    """
    raw: bytes | None = await exchange.read_all()
    try:
        data = orjson.loads(raw or b"")
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise errors.failed("The engine's answer is not a JSON object.")
    if data.get("model") not in (None, request.model):
        data["model"] = request.model
        raw = None
    usage = data.get("usage")
    account.succeed(engine.total([usage] if isinstance(usage, dict) else [], request))
    return raw, data


async def whole_parsed(
    exchange: Exchange,
    account: Account,
    request: OpenAIRequest,
    engine: Engine,
    on_objects: OnObjects,
) -> Tokens | None:
    """Hands on a whole answer as the one object of a stream, and returns what it took, if known.

    Raises:
        MeshError: It is not what OpenAI says it is, or nobody can read it.
        EngineConnectionError: It broke off.
        EngineTimeoutError: The engine fell silent.
    """
    _, data = await whole(exchange, account, request, engine)
    await on_objects([_as_event(data)])
    return account.tokens if isinstance(data.get("usage"), dict) else None


def _as_event(data: dict[str, Any]) -> dict[str, Any]:
    """Returns an answer as a stream would say it at once."""
    try:
        choices = [_as_piece(choice) for choice in data["choices"]]
    except (AttributeError, LookupError, TypeError):
        choices = []
    if not choices:
        raise errors.failed("The engine's answer cannot be read.")
    return data | {"choices": choices}


def _as_piece(choice: dict[str, Any]) -> dict[str, Any]:
    if "message" not in choice:
        return choice
    delta = dict(choice["message"].items())
    if calls := delta.get("tool_calls"):
        # What tells them apart in a stream.
        delta["tool_calls"] = [{"index": place, **call} for place, call in enumerate(calls)]
    return {name: said for name, said in choice.items() if name != "message"} | {"delta": delta}


async def folded(
    exchange: Exchange, account: Account, request: OpenAIRequest, engine: Engine
) -> dict[str, Any]:
    """Makes one answer of a stream.

    Raises:
        MeshError: The engine failed in the middle of it.
        EngineConnectionError: It broke off.
        EngineTimeoutError: The engine fell silent.
    """
    reader = StreamReader()
    fold = Fold(request.kind, request.model)
    # After the first content nobody waits for the single pieces.
    while piece := await exchange.read(_FOLD_STEP_BYTES if reader.has_content else 1):
        for data in reader.read(piece):
            fold.add(data)
        if reader.has_content:
            account.note_content()
        if reader.error is not None:
            raise errors.from_engine(errors.code_of(reader.error), reader.error)
        if reader.is_done:
            break
    if not fold.is_finished or (not reader.is_done and engine.ends_with_done):
        # `[DONE]` alone is no success: engines that are stopped send it too.
        raise EngineConnectionError("the engine broke off in the middle of the answer")
    tokens = engine.total(reader.usages, request)
    account.succeed(tokens)
    await settle(exchange)
    return fold.result(_usage_object(tokens, reader.usages))


def _usage_object(tokens: Tokens, usages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns OpenAI's usage object over all answers, in the engine's own form."""
    if not usages:
        return None
    if len(usages) == 1 or tokens.prompt is None or tokens.completion is None:
        return usages[-1]
    total = usages[-1] | {
        "completion_tokens": tokens.completion,
        "prompt_tokens": tokens.prompt,
        "total_tokens": tokens.prompt + tokens.completion,
    }
    if tokens.cached is not None:
        total["prompt_tokens_details"] = {"cached_tokens": tokens.cached}
    return total
