"""The two ways in which a stream goes back to its caller: as bytes, and as objects."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from services.inference import errors
from services.inference.accounting import Account
from services.inference.engines.dialect import Engine, Plan, Tokens
from services.inference.http_client import EngineConnectionError, EngineTimeoutError, Exchange
from services.inference.renaming import Renaming
from services.inference.requests import OpenAIRequest
from services.inference.sse import StreamFilter, StreamReader, has_finished
from services.kit.errors import MeshError

_SETTLE_S = 1.0
_DONE = re.compile(rb"^data: ?\[DONE\]", re.MULTILINE)
_DATA = b"data: "

Write = Callable[[bytes, str], Awaitable[None]]
"""Sends a part of an answer, with its content type, to the caller."""

WriteNow = Callable[[bytes], bool]
"""Sends a further part of an answer if that need not wait; returns whether it did."""

OnObjects = Callable[[list[dict[str, Any]]], Awaitable[None]]
"""Takes in the objects of events that have just come."""

Describe = Callable[[], dict[str, Any]]
"""Says how an answer came about, once it is complete."""


async def pass_on(
    exchange: Exchange,
    account: Account,
    request: OpenAIRequest,
    plan: Plan,
    engine: Engine,
    write: Write,
    describe: Describe | None = None,
    write_now: WriteNow | None = None,
) -> None:
    """Passes a stream on byte for byte, but for the name of the model where the engine's differs.

    Args:
        exchange: The engine's answer.
        account: What it took.
        request: What was asked.
        plan: How it was put to the engine.
        engine: The engine's dialect.
        write: Sends to the caller.
        describe: Says what stands in the event before `[DONE]`, where the caller wants one.
        write_now: Sends to the caller where that can be done without waiting.

    Raises:
        MeshError: It broke; where the caller has a part of it, an error event said so.
        EngineConnectionError: It broke before the caller had anything.
        EngineTimeoutError: It fell silent before the caller had anything.
    """
    stream = StreamFilter(
        hides_usage=plan.hides_usage, hides_progress=plan.hides_progress, restore=engine.restore
    )
    renaming: Renaming | None = Renaming(request.model)
    content_type = exchange.content_type
    has_sent = False
    out = first = b""

    def pass_plain(piece: bytes) -> bool:
        plain = stream.plain(piece)
        if not plain or write_now is None:
            return False
        return write_now(plain if renaming is None else renaming.apply(plain))

    try:
        while True:
            piece = await exchange.read()
            out = stream.feed(piece) if piece else stream.rest()
            if renaming is not None and out:
                out = renaming.apply(out)
                first = first or out
                if stream.has_content and not renaming.is_needed:
                    # What the first events do not name, or name as we do, later ones do too.
                    renaming = None
            if stream.has_content:
                account.note_content()
            if stream.error is not None:
                raise errors.from_engine(errors.code_of(stream.error), stream.error)
            if stream.is_done or not piece:
                break
            if out:
                await write(out, content_type)
                out = b""
                if not has_sent and write_now is not None:
                    # Nearly all of an answer passes so: to wake this task for it, and all that
                    # stand around it, takes more than everything else that is done with it here.
                    exchange.offer(pass_plain)
                has_sent = True
        _check_end(stream, engine, is_finished=stream.is_finished)
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
        # Callers read no further than `[DONE]`.
        await write(out[: _done_at(out)] + stream.rest() + event, content_type)
        raise refusal from None
    account.succeed(engine.total(stream.usages, request))
    if describe is not None:
        out = _with_description(out, first, request, describe())
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
    has_sent = is_finished = False
    progress: list[dict[str, Any]] = []
    try:
        while piece := await exchange.read():
            objects = reader.read(piece)
            is_finished = is_finished or any(map(has_finished, objects))
            if reader.has_content:
                account.note_content()
                await on_objects(progress + objects if progress else objects)
                progress = []
                has_sent = True
            elif request.wants_progress:
                progress = [each for each in objects if "prompt_progress" in each][-1:] or progress
            if reader.error is not None:
                raise errors.from_engine(errors.code_of(reader.error), reader.error)
            if reader.is_done:
                break
        _check_end(reader, engine, is_finished=is_finished)
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
    exchange.hasten()
    try:
        async with asyncio.timeout(_SETTLE_S):
            while await exchange.read():
                pass
    except (TimeoutError, EngineConnectionError, EngineTimeoutError):
        exchange.close()


def _check_end(stream: StreamReader, engine: Engine, *, is_finished: bool) -> None:
    """Tells an answer in full from one that was cut.

    `[DONE]` alone is no success: engines that are stopped send it too, after what they had.
    """
    if not stream.is_done and (engine.ends_with_done or stream.is_in_event):
        raise EngineConnectionError("the engine broke off in the middle of the answer")
    if not is_finished:
        raise EngineConnectionError("the engine ended the answer without a reason")


def _with_description(
    out: bytes, first: bytes, request: OpenAIRequest, description: dict[str, Any]
) -> bytes:
    """Returns the end of a stream with an event that holds the description before `[DONE]`."""
    is_chat = request.kind == "chat"
    event = b"data: %b\n\n" % orjson.dumps(
        {
            **_identity(first),
            "object": "chat.completion.chunk" if is_chat else "text_completion",
            "model": request.model,
            "choices": [],
            "gateway_metadata": description,
        }
    )
    end = _done_at(out)
    return out[:end] + event + out[end:]


def _done_at(events: bytes) -> int:
    """Returns where `[DONE]` stands, or the end where it does not."""
    done = _DONE.search(events)
    return len(events) if done is None else done.start()


def _identity(events: bytes) -> dict[str, Any]:
    """Returns what all events of an answer have in common, from the first of them."""
    start = events.find(_DATA) + len(_DATA)
    try:
        fields = orjson.loads(events[start:].split(b"\n", 1)[0])
    except orjson.JSONDecodeError:
        # Data over several lines: allowed, and in no engine's use.
        return {}
    return {name: fields[name] for name in ("id", "created") if name in fields}
