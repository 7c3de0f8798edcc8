"""Brings requests to the engine and its answers back; every surface goes through here.

The rules of the way back:

* Nothing goes to the caller before the engine's first event, so that Envoy can try another node.
* The usage is recorded before the last of the answer goes out.
* A caller that hangs up cancels the call, which closes the engine's connection, which stops it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson

from services.inference import errors
from services.inference.accounting import Account, Ledger
from services.inference.engines.dialect import Engine, EngineModel, Plan, Tokens
from services.inference.fold import Fold
from services.inference.http_client import (
    EngineClient,
    EngineConnectError,
    EngineConnectionError,
    EngineTimeoutError,
    Exchange,
)
from services.inference.requests import OpenAIRequest
from services.inference.sse import StreamReader
from services.inference.state import EngineState
from services.inference.streams import OnObjects, Write, pass_on, pass_parsed, settle
from services.kit.caller import Caller

_MAX_ERROR_BYTES = 1024 * 1024
_FOLD_STEP_BYTES = 64 * 1024

T = TypeVar("T")


class Relay:
    """The way to one engine and back.

    Args:
        engine: The engine's dialect.
        client: Connections to it.
        ledger: Where usage is recorded.
        state: What is known of the engine.
        max_in_flight: The most requests that are taken at the same time.
    """

    def __init__(
        self,
        engine: Engine,
        client: EngineClient,
        ledger: Ledger,
        state: EngineState,
        *,
        max_in_flight: int,
    ) -> None:
        self._engine = engine
        self._client = client
        self._ledger = ledger
        self._state = state
        self._max_in_flight = max_in_flight

    async def answer(
        self, caller: Caller, request: OpenAIRequest
    ) -> tuple[bytes | None, dict[str, Any]]:
        """Returns the whole answer.

        Returns:
            The engine's own bytes where they can go out as they are, and what they say.

        Raises:
            MeshError: The request was not answered.
        """
        self._admit_chat(caller, request)
        plan = self._engine.plan(request)

        async def work(account: Account) -> tuple[bytes | None, dict[str, Any]]:
            with await self._open(plan) as exchange:
                if plan.is_folded and _is_stream(exchange):
                    return None, await self._fold(exchange, account, request)
                return await self._whole(exchange, account, request)

        return await self.run(caller, request.kind, request.model, False, work)

    async def stream(self, caller: Caller, request: OpenAIRequest, write: Write) -> None:
        """Passes a stream on in OpenAI's form, byte for byte.

        Raises:
            MeshError: The request was not answered in full. Where a part of the answer is with
                the caller already, so is an error event.
        """
        self._admit_chat(caller, request)
        plan = self._engine.plan(request)

        async def work(account: Account) -> None:
            with await self._open(plan) as exchange:
                if _is_stream(exchange):
                    await pass_on(exchange, account, request, plan, self._engine, write)
                    return
                # An engine that cannot stream says it all at once.
                raw, data = await self._whole(exchange, account, request)
                await write(raw or orjson.dumps(data), exchange.content_type)

        await self.run(caller, request.kind, request.model, True, work)

    async def stream_parsed(
        self, caller: Caller, request: OpenAIRequest, on_objects: OnObjects
    ) -> Tokens | None:
        """Hands on the objects of a stream's events as they come.

        Returns:
            What the request took, or None where the engine did not say.

        Raises:
            MeshError: The request was not answered in full.
        """
        self._admit_chat(caller, request)
        plan = self._engine.plan(request)

        async def work(account: Account) -> Tokens | None:
            with await self._open(plan) as exchange:
                return await pass_parsed(exchange, account, request, self._engine, on_objects)

        return await self.run(caller, request.kind, request.model, True, work)

    def admit(self, caller: Caller, model: str) -> EngineModel:
        """Checks that a call may go to the engine.

        Raises:
            MeshError: `MODEL_NOT_FOUND`, `INVALID_ARGUMENT` or `ENGINE_UNAVAILABLE`.
        """
        if caller.model and caller.model != model:
            # Auth allowed one model; the body, read by another parser, names another.
            raise errors.invalid("model", "is not the one that the call was let in with")
        if not self._state.models:
            raise errors.unavailable("The node's engine is not up yet.")
        served = self._state.models.get(model)
        if served is None:
            raise errors.model_not_found(model)
        if self._state.in_flight >= self._max_in_flight:
            raise errors.unavailable("The node has too many requests already.")
        return served

    def _admit_chat(self, caller: Caller, request: OpenAIRequest) -> None:
        if not self.admit(caller, request.model).can_chat:
            raise errors.invalid("model", f"`{request.model}` serves embeddings only")

    async def run(
        self,
        caller: Caller,
        operation: str,
        model: str,
        is_stream: bool,
        work: Callable[[Account], Awaitable[T]],
    ) -> T:
        """Does what goes to the engine under an account of its own.

        Args:
            caller: Who asks.
            operation: `chat`, `completion` or `embedding`.
            model: The model.
            is_stream: Whether the caller asked for a stream.
            work: Talks to the engine; `succeed`s the account before the caller has everything.

        Raises:
            MeshError: The engine refused or failed.
        """
        account = self._ledger.open(caller, operation=operation, model=model, is_stream=is_stream)
        self._state.in_flight += 1
        try:
            return await work(account)
        except (EngineConnectionError, EngineTimeoutError) as error:
            if isinstance(error, EngineConnectError):
                self._state.set_up(False)
            # Nothing of the answer is with the caller: streams that have begun handle it earlier.
            refusal = errors.from_transport(error, has_answered=False)
            account.fail(refusal)
            raise refusal from None
        except asyncio.CancelledError:
            account.cancel()
            raise
        except BaseException as error:
            account.fail(error)
            raise
        finally:
            self._state.in_flight -= 1

    async def _open(self, plan: Plan) -> Exchange:
        """Sends a request and returns its answer, which has status 200."""
        exchange = await self._client.post(plan.path, plan.body)
        if exchange.status == 200:
            return exchange
        with exchange:
            answer = await exchange.read_all(_MAX_ERROR_BYTES)
            raise errors.from_response(exchange.status, answer)

    async def _whole(
        self, exchange: Exchange, account: Account, request: OpenAIRequest
    ) -> tuple[bytes | None, dict[str, Any]]:
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
        account.succeed(self._engine.total([usage] if isinstance(usage, dict) else [], request))
        return raw, data

    async def _fold(
        self, exchange: Exchange, account: Account, request: OpenAIRequest
    ) -> dict[str, Any]:
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
        if not reader.is_done and self._engine.ends_with_done:
            raise EngineConnectionError("the engine broke off in the middle of the answer")
        tokens = self._engine.total(reader.usages, request)
        account.succeed(tokens)
        await settle(exchange)
        return fold.result(_usage_object(tokens, reader.usages))


def _is_stream(exchange: Exchange) -> bool:
    return exchange.content_type.startswith("text/event-stream")


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
