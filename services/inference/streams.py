"""The two ways in which a stream goes back to its caller: as bytes, and as objects."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from services.inference import errors
from services.inference.accounting import Account
from services.inference.engines.dialect import Engine, Plan, Tokens
from services.inference.http_client import EngineConnectionError, EngineTimeoutError, Exchange
from services.inference.requests import OpenAIRequest
from services.inference.sse import StreamFilter, StreamReader
from services.kit.errors import MeshError

_SETTLE_S = 1.0

Write = Callable[[bytes, str], Awaitable[None]]
"""Sends a part of an answer, with its content type, to the caller."""

OnObjects = Callable[[list[dict[str, Any]]], Awaitable[None]]
"""Takes in the objects of events that have just come."""


async def pass_on(
    exchange: Exchange,
    account: Account,
    request: OpenAIRequest,
    plan: Plan,
    engine: Engine,
    write: Write,
) -> None:
    """Passes a stream on byte for byte.

    Raises:
        MeshError: It broke; where the caller has a part of it, an error event said so.
        EngineConnectionError: It broke before the caller had anything.
        EngineTimeoutError: It fell silent before the caller had anything.
    """
    stream = StreamFilter(
        hides_usage=plan.hides_usage, hides_progress=plan.hides_progress, restore=engine.restore
    )
    content_type = exchange.content_type
    has_sent = False
    out = b""
    try:
        while True:
            piece = await exchange.read()
            out = stream.feed(piece) if piece else stream.rest()
            if stream.has_content:
                account.note_content()
            if stream.error is not None:
                raise errors.from_engine(errors.code_of(stream.error), stream.error)
            if stream.is_done or not piece:
                break
            if out:
                await write(out, content_type)
                has_sent = True
                out = b""
        _check_end(stream, engine)
    except (MeshError, EngineConnectionError, EngineTimeoutError) as error:
        if not has_sent:
            raise
        refusal = (
            error
            if isinstance(error, MeshError)
            else errors.from_transport(error, has_answered=True)
        )
        account.fail(refusal)
        # The engine's own words where it said something.
        event = stream.error_event or b"data: %b\n\n" % refusal.openai_body().encode()
        await write(out + stream.rest() + event, content_type)
        raise refusal from None
    account.succeed(engine.total(stream.usages, request))
    if out:
        await write(out, content_type)
    await settle(exchange)


async def pass_parsed(
    exchange: Exchange,
    account: Account,
    request: OpenAIRequest,
    engine: Engine,
    on_objects: OnObjects,
) -> Tokens | None:
    """Hands on the objects of a stream, and returns what it took, or None where unknown.

    Raises:
        MeshError: The engine failed, or broke off after the caller had a part.
        EngineConnectionError: It broke before the caller had anything.
        EngineTimeoutError: It fell silent before the caller had anything.
    """
    reader = StreamReader()
    has_sent = False
    try:
        while piece := await exchange.read():
            objects = reader.read(piece)
            if reader.has_content:
                account.note_content()
                await on_objects(objects)
                has_sent = True
            if reader.error is not None:
                raise errors.from_engine(errors.code_of(reader.error), reader.error)
            if reader.is_done:
                break
        _check_end(reader, engine)
    except (EngineConnectionError, EngineTimeoutError) as error:
        if not has_sent:
            raise
        raise errors.from_transport(error, has_answered=True) from None
    tokens = engine.total(reader.usages, request)
    account.succeed(tokens)
    await settle(exchange)
    return tokens if reader.usages else None


async def settle(exchange: Exchange) -> None:
    """Waits for the end of the body after `[DONE]`, so that the connection can be used again.

    The answer is complete without it: an engine that does not end the body loses its connection.
    """
    if exchange.is_complete:
        return
    try:
        async with asyncio.timeout(_SETTLE_S):
            while await exchange.read():
                pass
    except (TimeoutError, EngineConnectionError, EngineTimeoutError):
        exchange.close()


def _check_end(stream: StreamReader, engine: Engine) -> None:
    if not stream.is_done and (engine.ends_with_done or stream.is_in_event):
        raise EngineConnectionError("the engine broke off in the middle of the answer")
