"""A relay that gives an earlier answer where the same is asked again.

What may be answered so goes one of three ways:

hit       the answer is here, or somebody makes it now: it is given again as it went out then
first     it goes to the engine, and what comes back is kept once it is there in full
beside    somebody makes it, but too slowly or for too many: it goes to the engine, unkept

Only what ended well is kept: neither errors nor what a caller left.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import orjson

from services.inference.accounting import Account, Ledger
from services.inference.admission import Admission
from services.inference.engines.dialect import Engine, Tokens
from services.inference.gateway_metadata import GatewayMetadata
from services.inference.http_client import EngineClient
from services.inference.relay import OnStart, Relay
from services.inference.requests import OpenAIRequest
from services.inference.response_cache.flights import Flights
from services.inference.response_cache.key import CachedModels, Form, key_of, may_reuse
from services.inference.response_cache.recording import Recording
from services.inference.response_cache.store import Answer, AnswerStore
from services.inference.settings import InferenceSettings
from services.inference.state import EngineState
from services.inference.streams import OnObjects, Write
from services.kit.audit_inference import InferenceAudit
from services.kit.caller import Caller

HIT, MISS = "hit", "miss"

T = TypeVar("T")


class ResponseCache(NamedTuple):
    """What a node keeps of its answers.

    Args:
        store: The answers.
        flights: The answers that are being made.
        models: The models whose answers are kept without being asked to.
    """

    store: AnswerStore
    flights: Flights
    models: CachedModels


def response_cache_of(settings: InferenceSettings) -> ResponseCache | None:
    """Returns an empty cache as the operator wants it; None for none."""
    if not settings.response_cache_mib:
        return None
    return ResponseCache(
        AnswerStore(
            max_bytes=settings.response_cache_mib * 1024 * 1024,
            max_answer_bytes=settings.response_cache_answer_kib * 1024,
            ttl_s=settings.response_cache_ttl_s,
        ),
        # Whoever waits for another's answer waits as for the engine.
        Flights(max_waiting=settings.max_queued, max_wait_s=settings.max_queue_wait_s),
        CachedModels([name.strip() for name in settings.response_cache_models.split(",") if name]),
    )


class CachingRelay(Relay):
    """The way to one engine, past the answers that are here.

    Args:
        cache: The answers.
        engine: As `Relay` has it, like all that follow.
        client: …
        ledger: …
        state: …
        admission: …
        metadata: …
        audit: …
    """

    def __init__(
        self,
        cache: ResponseCache,
        engine: Engine,
        client: EngineClient,
        ledger: Ledger,
        state: EngineState,
        admission: Admission,
        metadata: GatewayMetadata,
        audit: InferenceAudit,
    ) -> None:
        super().__init__(engine, client, ledger, state, admission, metadata, audit)
        self._cache = cache

    async def answer(
        self, caller: Caller, request: OpenAIRequest, on_start: OnStart | None = None
    ) -> tuple[bytes | None, dict[str, Any]]:
        """Returns the whole answer, as `Relay` does or did."""
        key = self._key(caller, request, "whole")
        if key is None:
            return await super().answer(caller, request, on_start)

        async def again(answer: Answer, account: Account) -> tuple[bytes, dict[str, Any]]:
            account.reuse(answer.tokens)
            (raw,) = answer.pieces
            return raw, orjson.loads(raw)

        async def make(
            recording: Recording | None,
        ) -> tuple[tuple[bytes | None, dict[str, Any]], bool]:
            raw, data = await super(CachingRelay, self).answer(
                caller, request, _started(recording, on_start)
            )
            if recording is not None:
                recording.add(orjson.dumps(data) if raw is None else raw)
            return (raw, data), True

        return await self._reuse_or(caller, request, key, again, make)

    async def stream(
        self,
        caller: Caller,
        request: OpenAIRequest,
        write: Write,
        on_start: OnStart | None = None,
    ) -> None:
        """Passes a stream on, as `Relay` does, or did."""
        key = self._key(caller, request, "bytes")
        if key is None:
            await super().stream(caller, request, write, on_start)
            return

        async def again(answer: Answer, account: Account) -> None:
            *pieces, last = answer.pieces
            for piece in pieces:
                account.note_content()
                await write(piece, answer.content_type)
            account.reuse(answer.tokens)
            await write(last, answer.content_type)

        async def make(recording: Recording | None) -> tuple[None, bool]:
            async def record(data: bytes, content_type: str) -> None:
                if recording is not None:
                    recording.add(data, content_type)
                await write(data, content_type)

            await super(CachingRelay, self).stream(
                caller, request, record, _started(recording, on_start)
            )
            return None, True

        await self._reuse_or(caller, request, key, again, make)

    async def stream_parsed(
        self,
        caller: Caller,
        request: OpenAIRequest,
        on_objects: OnObjects,
        on_start: OnStart | None = None,
    ) -> tuple[Tokens | None, dict[str, Any] | None]:
        """Hands on the objects of a stream's events, as `Relay` does, or did."""
        key = self._key(caller, request, "objects")
        if key is None:
            return await super().stream_parsed(caller, request, on_objects, on_start)

        async def again(
            answer: Answer, account: Account
        ) -> tuple[Tokens | None, dict[str, Any] | None]:
            for piece in answer.pieces:
                account.note_content()
                await on_objects(orjson.loads(piece))
            account.reuse(answer.tokens)
            return answer.tokens if answer.has_usage else None, None

        async def make(
            recording: Recording | None,
        ) -> tuple[tuple[Tokens | None, dict[str, Any] | None], bool]:
            async def record(objects: list[dict[str, Any]]) -> None:
                if recording is not None:
                    recording.add(orjson.dumps(objects))
                await on_objects(objects)

            result = await super(CachingRelay, self).stream_parsed(
                caller, request, record, _started(recording, on_start)
            )
            return result, result[0] is not None

        return await self._reuse_or(caller, request, key, again, make)

    def _key(self, caller: Caller, request: OpenAIRequest, form: Form) -> bytes | None:
        if request.fields.get("enable_caching") is None and not self._cache.models:
            # Most calls: they pay nothing for what others ask for.
            return None
        model = self.admit(caller, request.model).name
        if not may_reuse(caller, request, model, self._cache.models):
            return None
        return key_of(caller, request, model, form, self._state.engine_generation)

    async def _reuse_or(
        self,
        caller: Caller,
        request: OpenAIRequest,
        key: bytes,
        again: Callable[[Answer, Account], Awaitable[T]],
        make: Callable[[Recording | None], Awaitable[tuple[T, bool]]],
    ) -> T:
        """Answers with `again` where the answer is known, else with `make`, and keeps that."""
        began_ns = time.monotonic_ns()
        store, flights, _ = self._cache
        answer = await flights.join(key, lambda: store.get(key))
        if answer is not None:
            request.cache = HIT
            return await self._again(caller, request, answer, again, began_ns)
        request.cache = MISS
        with flights.lead(key) as flight:
            if flight is None:
                return (await make(None))[0]
            recording = Recording(store.max_answer_bytes, flight)
            result, has_usage = await make(recording)
            flight.answer = recording.end(has_usage=has_usage)
            if flight.answer is not None:
                store.put(key, flight.answer)
            return result

    async def _again(
        self,
        caller: Caller,
        request: OpenAIRequest,
        answer: Answer,
        again: Callable[[Answer, Account], Awaitable[T]],
        began_ns: int,
    ) -> T:
        request.model = self.admit(caller, request.model).name
        if caller.audits_body:
            self.audit.note(caller, request.kind, request.model, request.fields)
        account = self._ledger.open(
            caller,
            operation=request.kind,
            model=request.model,
            is_stream=request.is_stream,
            began_ns=began_ns,
            waited_ns=0,
        )
        try:
            return await again(answer, account)
        except asyncio.CancelledError:
            account.cancel()
            raise
        except BaseException as error:
            account.fail(error)
            raise


def _started(recording: Recording | None, on_start: OnStart | None) -> OnStart | None:
    if recording is None:
        return on_start

    def start(account: Account) -> None:
        recording.start(account)
        if on_start is not None:
            on_start(account)

    return start
