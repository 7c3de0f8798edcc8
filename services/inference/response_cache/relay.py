"""A relay that gives an earlier answer where the same is asked again.

What may be answered so goes one of four ways:

hit       the answer is here, or somebody makes it now: it is given again as it went out then
near      where the operator wants that, the question was asked before in other words
first     it goes to the engine, and what comes back is kept once it is there in full
beside    somebody makes it, but too slowly or for too many: it goes to the engine, unkept

Only what ended well is kept: neither errors nor what a caller left, nor what its surface could not
put into its own words. What one surface kept and another cannot say is dropped.
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
from services.inference.response_cache.cache import ResponseCache
from services.inference.response_cache.key import Form, key_of, may_reuse
from services.inference.response_cache.recording import Recording
from services.inference.response_cache.store import Answer
from services.inference.state import EngineState
from services.inference.streams import OnObjects, Write, WriteNow
from services.kit.audit_inference import InferenceAudit
from services.kit.caller import Caller
from services.kit.errors import MeshError

HIT, MISS = "hit", "miss"

T = TypeVar("T")


class _Asked(NamedTuple):
    """What may be answered with an earlier answer.

    Args:
        key: What stands for it.
        model: The model that answers.
        form: How its surface wants the answer.
        generation: Counts the starts of the engine.
    """

    key: bytes
    model: str
    form: Form
    generation: int


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
        return await self._whole(caller, request, lambda raw, data: (raw, data), on_start)

    async def answer_as(
        self, caller: Caller, request: OpenAIRequest, read: Callable[[dict[str, Any]], T]
    ) -> T:
        """Returns the whole answer in a surface's own form, as `Relay` does or did."""
        return await self._whole(caller, request, lambda _, data: read(data))

    async def _whole(
        self,
        caller: Caller,
        request: OpenAIRequest,
        read: Callable[[bytes | None, dict[str, Any]], T],
        on_start: OnStart | None = None,
    ) -> T:
        asked = self._asked(caller, request, "whole")
        if asked is None:
            return read(*await super().answer(caller, request, on_start))

        async def again(answer: Answer, account: Account) -> T:
            (raw,) = answer.pieces
            result = read(raw, orjson.loads(raw))
            account.reuse(answer.tokens)
            return result

        async def make(recording: Recording | None) -> tuple[T, bool]:
            raw, data = await super(CachingRelay, self).answer(
                caller, request, _started(recording, on_start)
            )
            # First, so that what cannot be read is not kept.
            result = read(raw, data)
            if recording is not None:
                recording.add(orjson.dumps(data) if raw is None else raw)
            return result, True

        return await self._reuse_or(caller, request, asked, again, make)

    async def stream(
        self,
        caller: Caller,
        request: OpenAIRequest,
        write: Write,
        on_start: OnStart | None = None,
        write_now: WriteNow | None = None,
    ) -> None:
        """Passes a stream on, as `Relay` does, or did."""
        asked = self._asked(caller, request, "bytes")
        if asked is None:
            await super().stream(caller, request, write, on_start, write_now)
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

        await self._reuse_or(caller, request, asked, again, make)

    async def stream_parsed(
        self,
        caller: Caller,
        request: OpenAIRequest,
        on_objects: OnObjects,
        on_start: OnStart | None = None,
    ) -> tuple[Tokens | None, dict[str, Any] | None]:
        """Hands on the objects of a stream's events, as `Relay` does, or did."""
        asked = self._asked(caller, request, "objects")
        if asked is None:
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

        return await self._reuse_or(caller, request, asked, again, make)

    def _asked(self, caller: Caller, request: OpenAIRequest, form: Form) -> _Asked | None:
        unasked = request.fields.get("enable_caching") is None
        if unasked and not self._cache.models and caller.caching != "on":
            # Most calls: they pay nothing for what others ask for.
            return None
        model = self.admit(caller, request.model).name
        if not may_reuse(caller, request, model, self._cache.models):
            return None
        generation = self._state.engine_generation
        key = key_of(caller, request, model, form, generation)
        return _Asked(key, model, form, generation)

    async def _reuse_or(
        self,
        caller: Caller,
        request: OpenAIRequest,
        asked: _Asked,
        again: Callable[[Answer, Account], Awaitable[T]],
        make: Callable[[Recording | None], Awaitable[tuple[T, bool]]],
    ) -> T:
        """Answers with `again` where the answer is known, else with `make`, and keeps that."""
        began_ns = time.monotonic_ns()
        store, flights, _, semantic = self._cache
        key = asked.key
        answer = await flights.join(key, lambda: store.get(key))
        if answer is not None:
            return await self._again(caller, request, answer, again, began_ns)
        request.cache = MISS
        with flights.lead(key) as flight:
            if flight is None:
                return (await make(None))[0]
            question = None
            if semantic is not None:
                question = await semantic.ask(
                    caller, request, asked.model, asked.form, asked.generation
                )
                if question is not None:
                    flight.answer = semantic.find(question, key, store)
            if flight.answer is None:
                recording = Recording(store.max_answer_bytes, flight)
                result, has_usage = await make(recording)
                flight.answer = recording.end(has_usage=has_usage)
                if flight.answer is not None:
                    store.put(key, flight.answer)
                    if semantic is not None and question is not None:
                        semantic.keep(question, key)
                return result
            answer = flight.answer
        # Those who wait have it by now, however slowly this caller reads.
        return await self._again(caller, request, answer, again, began_ns)

    async def _again(
        self,
        caller: Caller,
        request: OpenAIRequest,
        answer: Answer,
        again: Callable[[Answer, Account], Awaitable[T]],
        began_ns: int,
    ) -> T:
        request.cache = HIT
        if answer.similarity is not None:
            # Cut, not rounded: none says more than it is.
            request.cache += f" {int(answer.similarity * 1000) / 1000:.3f}"
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
            if isinstance(error, MeshError):
                # Another surface kept it, and this one cannot say it: the next call gets its own.
                self._cache.store.drop(answer)
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
