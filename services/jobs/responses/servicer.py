"""The RPCs of the Responses API."""

import logging
from typing import Any

import grpc
import orjson
from google.api import httpbody_pb2

from infermesh.errors.v1 import errors_pb2
from infermesh.jobs.v1 import response_service_pb2 as pb
from infermesh.jobs.v1 import response_service_pb2_grpc
from services.jobs import listing
from services.jobs.errors import invalid, refuse, unsupported
from services.jobs.identity import Scope, passed_on, scope_of
from services.jobs.nodes import Answer, Nodes
from services.jobs.responses import chat
from services.jobs.responses.items import Item
from services.jobs.responses.request import ResponseRequest, parse
from services.jobs.responses.response import Response
from services.jobs.responses.store import ResponseStore, Stored
from services.jobs.sse import Reader, written
from services.kit.caller import caller_of
from services.kit.errors import MeshError, StoreUnavailableError

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]
_JSON = "application/json; charset=utf-8"
_STREAM = "text/event-stream; charset=utf-8"
_COMMENT = b":"

# What Envoy holds of a request, less what stands around the JSON.
_MAX_CHAT_BYTES = 16 * 1024 * 1024 - 4096

# Where the field of a chat that a node complains of stands in a response's request.
_PARAMS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}


class ResponsesServicer(response_service_pb2_grpc.ResponseServiceServicer):
    """Implements ResponseService.

    Args:
        nodes: The way to the engines.
        store: Where responses are kept.
    """

    def __init__(self, nodes: Nodes, store: ResponseStore) -> None:
        self._nodes = nodes
        self._store = store

    # A coroutine that writes is cancelled where it waits; a generator stands at its `yield`.
    async def CreateResponse(  # type: ignore[override]
        self, request: httpbody_pb2.HttpBody, context: _Context
    ) -> None:
        """Answers; writes to the context, so that a hang-up reaches it."""
        metadata: Any = context.invocation_metadata() or ()
        caller = caller_of(metadata)
        asked = parse(request.data)
        if caller.model and caller.model != asked.model:
            # JSON allows a key twice, and two parsers may then read two models.
            refuse("model", "must be in the body once")
        scope = scope_of(metadata)
        items = [*await self._earlier(scope, asked), *asked.items]
        body = orjson.dumps({**asked.chat, "messages": chat.messages(asked.instructions, items)})
        if len(body) > _MAX_CHAT_BYTES:
            raise MeshError(
                errors_pb2.ERROR_REASON_REQUEST_TOO_LARGE,
                f"The conversation is longer than {_MAX_CHAT_BYTES} bytes.",
                param="previous_response_id" if asked.previous_id else "input",
            )
        response = Response(asked)
        try:
            async with self._nodes.chat(body, asked.model, passed_on(metadata)) as answer:
                if asked.is_stream:
                    await self._stream(answer, response, context)
                else:
                    await self._whole(answer, response, context)
                    await self._keep(scope, caller.key_id, asked, response)
                    await _write(context, orjson.dumps(response.as_json()), _JSON)
                    return
        except MeshError as error:
            if response.status == "in_progress":
                raise _renamed(error) from None
            await self._keep(scope, caller.key_id, asked, response)
            await _write(context, written(response.last()), _STREAM)
            raise
        await self._keep(scope, caller.key_id, asked, response)
        await _write(context, written(response.last()), _STREAM)

    async def _earlier(self, scope: Scope, asked: ResponseRequest) -> list[Item]:
        """Returns the items of the conversation so far."""
        if asked.previous_id is None:
            return []
        turns = await self._store.conversation(scope, asked.previous_id, "previous_response_id")
        items: list[Item] = []
        for turn in turns:
            items += orjson.loads(turn.items)
            body = orjson.loads(turn.body)
            if body["status"] == "failed":
                refuse("previous_response_id", f"the response `{turn.id}` failed")
            items += body["output"]
        return items

    async def _whole(self, answer: Answer, response: Response, context: _Context) -> None:
        body = await answer.read_all()
        await context.send_initial_metadata(await answer.shown())
        response.feed([_object(body)])
        response.finish()

    async def _stream(self, answer: Answer, response: Response, context: _Context) -> None:
        """Passes a stream on as events, but for the last of them.

        Raises:
            MeshError: It broke. Where the caller has a part of it the response has failed.
        """
        reader = Reader()
        has_sent = False
        try:
            while piece := await answer.read():
                if answer.content_type.startswith("application/json"):
                    # An engine that cannot stream says it all at once.
                    pieces = [_object(piece + await answer.read_all())]
                else:
                    pieces = reader.read(piece)
                for each in pieces:
                    if each.get("error") is not None:
                        # Why comes with the end of the call.
                        await answer.read_all()
                        raise _failed("The engine failed in the middle of the answer.")
                data = written(response.feed(pieces))
                if not data and piece.startswith(_COMMENT):
                    # A node keeps a silent stream alive: this caller waits as long.
                    data = piece
                if not data:
                    continue
                if not has_sent:
                    has_sent = True
                    await context.send_initial_metadata(await answer.shown())
                await _write(context, data, _STREAM)
            if not response.has_finished:
                raise _failed("The engine ended the answer without a reason.")
        except MeshError as error:
            if has_sent:
                await _write(context, written(response.fail(error)), _STREAM)
            raise
        await _write(context, written(response.finish()), _STREAM)

    async def _keep(
        self, scope: Scope, key_id: str, asked: ResponseRequest, response: Response
    ) -> None:
        """Keeps a response, where that is wanted. One that cannot be kept says so."""
        if not response.is_stored:
            return
        stored = Stored(
            response.id,
            asked.previous_id,
            orjson.dumps(response.as_json()),
            orjson.dumps(asked.items),
        )
        try:
            await self._store.put(scope, key_id, stored, response.create_time_s)
        except StoreUnavailableError as error:
            # The answer is there and paid for: better without a memory than not at all.
            log.warning("a response is not kept", extra={"id": response.id, "error": repr(error)})
            response.is_stored = False

    async def GetResponse(
        self, request: pb.GetResponseRequest, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Returns a response that was kept."""
        if request.stream:
            raise unsupported("stream", "a response that is over is not streamed again")
        stored = await self._store.get(_scope(context), request.response_id)
        return httpbody_pb2.HttpBody(content_type=_JSON, data=stored.body)

    async def DeleteResponse(
        self, request: pb.DeleteResponseRequest, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Forgets a response."""
        await self._store.delete(_scope(context), request.response_id)
        body = {"id": request.response_id, "object": "response", "deleted": True}
        return httpbody_pb2.HttpBody(content_type=_JSON, data=orjson.dumps(body))

    async def CancelResponse(
        self, request: pb.CancelResponseRequest, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Refuses: hanging up is what cancels."""
        await self._store.get(_scope(context), request.response_id)
        raise invalid(
            "response_id", "only a response in the background can be cancelled; this one is over"
        )

    async def ListInputItems(
        self, request: pb.ListInputItemsRequest, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Lists what a response was asked with."""
        turns = await self._store.conversation(_scope(context), request.response_id, "response_id")
        items: list[Item] = []
        for turn in turns:
            items += orjson.loads(turn.items)
            if turn.id != request.response_id:
                items += orjson.loads(turn.body)["output"]
        page = listing.page(
            items,
            limit=request.limit or listing.DEFAULT_LIMIT,
            is_ascending=request.order == "asc",
            after=request.after,
        )
        return httpbody_pb2.HttpBody(content_type=_JSON, data=orjson.dumps(page))


def _scope(context: _Context) -> Scope:
    metadata: Any = context.invocation_metadata()
    return scope_of(metadata)


async def _write(context: _Context, data: bytes, content_type: str) -> None:
    if data:
        await context.write(httpbody_pb2.HttpBody(content_type=content_type, data=data))


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise _failed("The answer is no JSON object.")
    return found


def _renamed(error: MeshError) -> MeshError:
    """Returns a node's error with the field at fault as the caller named it."""
    if error.param is None:
        return error
    for name, here in _PARAMS.items():
        if error.param == name or error.param.startswith((f"{name}[", f"{name}.")):
            # What follows counts messages, of which the caller has none.
            message = error.message.replace(error.param, here, 1)
            return MeshError(
                error.reason,
                message,
                param=here,
                metadata=error.metadata,
                retry_after_s=error.retry_after_s,
            )
    return error


def _failed(message: str) -> MeshError:
    return MeshError(errors_pb2.ERROR_REASON_ENGINE_FAILED, message)
