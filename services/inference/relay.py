"""Brings requests to the engine and its answers back; every surface goes through here.

The rules of the way back:

* Nothing goes to the engine before it has room; until then a request waits at `Admission`'s door.
* Nothing goes to the caller before the engine's first event, so that Envoy can try another node.
* The usage is recorded before the last of the answer goes out.
* A caller that hangs up cancels the call, which closes the engine's connection, which stops it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson

from infermesh.errors.v1 import errors_pb2
from services.inference import errors
from services.inference.accounting import Account, Ledger
from services.inference.admission import Admission
from services.inference.engines.dialect import Engine, EngineModel, Plan, Tokens
from services.inference.engines.translated import translated
from services.inference.fair_queue import Priority
from services.inference.gateway_metadata import GatewayMetadata
from services.inference.http_client import (
    EngineClient,
    EngineConnectError,
    EngineConnectionError,
    EngineTimeoutError,
    Exchange,
)
from services.inference.requests import OpenAIRequest
from services.inference.state import EngineState
from services.inference.streams import OnObjects, Write, WriteNow, pass_on, pass_parsed
from services.inference.whole import folded, whole, whole_parsed
from services.kit.audit_inference import InferenceAudit
from services.kit.caller import Caller
from services.kit.errors import MeshError

_MAX_ERROR_BYTES = 1024 * 1024

# A request that makes engines fail goes to no more of them than this.
_MOST_FAILURES = 3
_FAILED = errors_pb2.ERROR_REASON_ENGINE_FAILED

T = TypeVar("T")

OnStart = Callable[[Account], None]
"""Called with the account once the engine has room."""


class Relay:
    """The way to one engine and back.

    Args:
        engine: The engine's dialect.
        client: Connections to it.
        ledger: Where usage is recorded.
        state: What is known of the engine.
        admission: The door to the engine.
        metadata: Says how an answer came about.
        audit: Tells the audit log what is asked, where auth wants to know it.
    """

    def __init__(
        self,
        engine: Engine,
        client: EngineClient,
        ledger: Ledger,
        state: EngineState,
        admission: Admission,
        metadata: GatewayMetadata,
        audit: InferenceAudit,
    ) -> None:
        self._engine = engine
        self._client = client
        self._ledger = ledger
        self._state = state
        self._admission = admission
        self._metadata = metadata
        self.audit = audit

    async def answer(
        self, caller: Caller, request: OpenAIRequest, on_start: OnStart | None = None
    ) -> tuple[bytes | None, dict[str, Any]]:
        """Returns the whole answer.

        The request's model becomes the one that answers.

        Returns:
            The engine's own bytes where they can go out as they are, and what they say, with
            `gateway_metadata` where the caller wants to see how the answer came about.

        Raises:
            MeshError: The request was not answered.
        """
        plan = self.plan(caller, request)

        async def work(account: Account) -> tuple[bytes | None, dict[str, Any]]:
            if on_start is not None:
                on_start(account)
            with await self._open(plan) as exchange:
                if plan.is_folded and _is_stream(exchange):
                    raw, data = None, await folded(exchange, account, request, self._engine)
                else:
                    raw, data = await whole(exchange, account, request, self._engine)
            if not caller.decision:
                return raw, data
            return None, data | {"gateway_metadata": self._describe(caller, account, request)}

        return await self._run(caller, request, False, work)

    async def answer_as(
        self, caller: Caller, request: OpenAIRequest, read: Callable[[dict[str, Any]], T]
    ) -> T:
        """Returns the whole answer in a surface's own form.

        Args:
            caller: Who asks.
            request: What is asked; its model is the one that answers once `read` is called.
            read: Makes that form of what the answer says.

        Raises:
            MeshError: The request was not answered, or the answer cannot be read.
        """
        return read((await self.answer(caller, request))[1])

    async def stream(
        self,
        caller: Caller,
        request: OpenAIRequest,
        write: Write,
        on_start: OnStart | None = None,
        write_now: WriteNow | None = None,
    ) -> None:
        """Passes a stream on in OpenAI's form, byte for byte.

        The request's model becomes the one that answers.

        Args:
            caller: Who asks.
            request: What is asked.
            write: Sends to the caller.
            on_start: Told when the engine has the request.
            write_now: Sends to the caller where that can be done without waiting; spares most
                parts of an answer the way through `write`.

        Raises:
            MeshError: The request was not answered in full. Where a part of the answer is with
                the caller already, so is an error event.
        """
        plan = self.plan(caller, request)

        async def work(account: Account) -> None:
            def describe() -> dict[str, Any]:
                return self._describe(caller, account, request)

            if on_start is not None:
                on_start(account)
            with await self._open(plan) as exchange:
                if _is_stream(exchange):
                    await pass_on(
                        exchange,
                        account,
                        request,
                        plan,
                        self._engine,
                        write,
                        describe if caller.decision else None,
                        write_now,
                    )
                    return
                # An engine that cannot stream says it all at once.
                raw, data = await whole(exchange, account, request, self._engine)
                if caller.decision:
                    raw = orjson.dumps(data | {"gateway_metadata": describe()})
                await write(raw or orjson.dumps(data), exchange.content_type)

        await self._run(caller, request, True, work)

    async def stream_parsed(
        self,
        caller: Caller,
        request: OpenAIRequest,
        on_objects: OnObjects,
        on_start: OnStart | None = None,
    ) -> tuple[Tokens | None, dict[str, Any] | None]:
        """Hands on the objects of a stream's events as they come.

        The request's model becomes the one that answers.

        Returns:
            What the request took, or None where the engine did not say, and how the answer came
            about, or None where the caller does not want to see it.

        Raises:
            MeshError: The request was not answered in full.
        """
        plan = self.plan(caller, request)

        async def work(account: Account) -> tuple[Tokens | None, dict[str, Any] | None]:
            if on_start is not None:
                on_start(account)
            with await self._open(plan) as exchange:
                # As in `stream`, an engine may say it all at once.
                read = pass_parsed if _is_stream(exchange) else whole_parsed
                tokens = await read(exchange, account, request, self._engine, on_objects)
            if not caller.decision:
                return tokens, None
            return tokens, self._describe(caller, account, request)

        return await self._run(caller, request, True, work)

    def admit(self, caller: Caller, model: str) -> EngineModel:
        """Returns the model that answers: the first that is asked for and that the engine serves.

        Args:
            caller: Who asks, with the models that routing asks for.
            model: The model that the request names; it counts where routing leaves it to that.

        Raises:
            MeshError: `MODEL_NOT_FOUND`, `INVALID_ARGUMENT` or `ENGINE_UNAVAILABLE`.
        """
        if not caller.models and caller.model and caller.model != model:
            # Auth allowed one model; the body, read by another parser, names another.
            raise errors.invalid("model", "is not the one that the call was let in with")
        state = self._state
        if not state.is_up or not state.models:
            raise errors.unavailable("The node's engine is not up.")
        names = caller.models or (model,)
        for name in names:
            if (served := state.models.get(name)) is not None:
                return served
        raise errors.model_not_found(names[0])

    def plan(self, caller: Caller, request: OpenAIRequest) -> Plan:
        """Returns how a request is put to the engine; its model becomes the one that answers.

        Raises:
            MeshError: The model is not served here, or cannot do what is asked.
        """
        served = self.admit(caller, request.model)
        if not served.can_chat:
            what = "rankings" if served.can_rank and not served.can_embed else "embeddings"
            raise errors.invalid("model", f"`{served.name}` serves {what} only")
        request.model = served.name
        return self._engine.plan(request)

    def _run(
        self,
        caller: Caller,
        request: OpenAIRequest,
        is_stream: bool,
        work: Callable[[Account], Awaitable[T]],
    ) -> Awaitable[T]:
        if caller.audits_body:
            self.audit.note(caller, request.kind, request.model, request.fields)
        return self.run(
            caller,
            request.kind,
            request.model,
            is_stream,
            work,
            priority=request.priority,
            prompt_bytes=len(request.body),
        )

    async def run(
        self,
        caller: Caller,
        operation: str,
        model: str,
        is_stream: bool,
        work: Callable[[Account], Awaitable[T]],
        *,
        priority: Priority = Priority.NORMAL,
        prompt_bytes: int,
    ) -> T:
        """Does what goes to the engine, once it has room, under an account of its own.

        Args:
            caller: Who asks.
            operation: One of `accounting.OPERATIONS`.
            model: The model that answers.
            is_stream: Whether the caller asked for a stream.
            work: Talks to the engine; `succeed`s the account before the caller has everything.
            priority: How urgent it is.
            prompt_bytes: How much there is to read for the engine.

        Raises:
            MeshError: The engine refused or failed, or has no room.
        """
        began_ns = time.monotonic_ns()
        admission = self._admission
        entered_ns = began_ns
        if not admission.try_enter():
            await admission.wait(caller.tenant, priority, prompt_bytes)
            entered_ns = time.monotonic_ns()
        try:
            account = self._ledger.open(
                caller,
                operation=operation,
                model=model,
                is_stream=is_stream,
                began_ns=began_ns,
                waited_ns=entered_ns - began_ns,
            )
            try:
                return await work(account)
            except (EngineConnectionError, EngineTimeoutError) as error:
                if isinstance(error, EngineConnectError):
                    self._state.set_up(False)
                # Nothing of the answer is with the caller: streams that have begun handle it
                # earlier.
                refusal = errors.from_transport(error, has_answered=False)
                if not isinstance(error, EngineConnectError):
                    refusal.is_final = caller.attempt >= _MOST_FAILURES
                account.fail(refusal)
                raise refusal from None
            except asyncio.CancelledError:
                account.cancel()
                raise
            except BaseException as error:
                if isinstance(error, MeshError) and error.reason == _FAILED:
                    # What three engines fail at is likely to be the request's own fault.
                    error.is_final = caller.attempt >= _MOST_FAILURES
                account.fail(error)
                raise
        finally:
            admission.leave((time.monotonic_ns() - entered_ns) / 1e9)

    def describe(self, caller: Caller, account: Account, model: str) -> dict[str, Any]:
        """Returns how a complete answer came about, as `gateway_metadata` says it."""
        return self._metadata.of(caller, account, model)

    def _describe(self, caller: Caller, account: Account, request: OpenAIRequest) -> dict[str, Any]:
        return self._metadata.of(caller, account, request.model)

    async def _open(self, plan: Plan) -> Exchange:
        """Sends a request and returns its answer, which has status 200."""
        exchange = await self._client.post(plan.path, plan.body)
        if exchange.status == 200:
            return translated(exchange, plan)
        with exchange:
            answer = await exchange.read_all(_MAX_ERROR_BYTES)
            raise errors.from_response(exchange.status, answer)


def _is_stream(exchange: Exchange) -> bool:
    return exchange.content_type.startswith("text/event-stream")
