"""Runs one line: as its key, below everybody else, and at most once."""

from typing import NamedTuple

import grpc
import orjson
from google.api import httpbody_pb2

from infermesh.embeddings.v1 import embeddings_service_pb2_grpc
from infermesh.errors.v1 import errors_pb2
from infermesh.inference.v1 import openai_service_pb2_grpc
from services.jobs.batches.callers import Callers
from services.jobs.batches.claim import Claim
from services.jobs.batches.requests import answered, unanswered
from services.jobs.batches.work import UNKNOWN
from services.jobs.identity import Pairs
from services.jobs.nodes import local_reply
from services.kit.errors import MeshError, from_rpc_error

_R = errors_pb2.ErrorReason

# None of these comes from an engine that has begun.
_NO_ROOM = frozenset(
    {
        _R.ERROR_REASON_OVERLOADED,
        _R.ERROR_REASON_RATE_LIMIT_EXCEEDED,
        _R.ERROR_REASON_NO_NODE_AVAILABLE,
        _R.ERROR_REASON_SERVICE_UNAVAILABLE,
        _R.ERROR_REASON_STORE_UNAVAILABLE,
    }
)


class Outcome(NamedTuple):
    """How a line ended.

    Args:
        is_ok: Whether it was answered with 200.
        result: The line for the output or error file.
    """

    is_ok: bool
    result: bytes


class NoRoomError(Exception):
    """The mesh refused a line before it ran.

    Args:
        retry_after_s: When to try again, where the mesh says so, in seconds.
    """

    def __init__(self, retry_after_s: float | None) -> None:
        super().__init__("no room")
        self.retry_after_s = retry_after_s


class _BrokenError(Exception):
    """The way to the node broke while a line may have been running."""


class Runner:
    """Brings lines to nodes and to the embeddings service.

    Args:
        channel: To Envoy's listener for calls inside the mesh.
        callers: Says what keys may do.
    """

    def __init__(self, channel: grpc.aio.Channel, callers: Callers) -> None:
        openai = openai_service_pb2_grpc.OpenAIServiceStub(channel)
        embeddings = embeddings_service_pb2_grpc.EmbeddingsServiceStub(channel)
        # `admission.RPCS` names the same to auth.
        self._streams = {
            "/v1/chat/completions": openai.CreateChatCompletion,
            "/v1/completions": openai.CreateCompletion,
        }
        self._embed = embeddings.CreateEmbeddings
        self._callers = callers

    async def run(self, claim: Claim) -> Outcome:
        """Runs a line.

        Raises:
            NotNowError: Its key's lines must wait; it has not run.
            NoRoomError: The mesh has no room now; it has not run.
        """
        try:
            metadata = await self._callers.admit(claim)
        except MeshError as error:
            return _refused(claim, error)
        try:
            body = await self._answer(claim, metadata)
            if not _is_json(body):
                raise MeshError(_R.ERROR_REASON_ENGINE_FAILED, "The engine's answer is no JSON.")
        except MeshError as error:
            if error.reason in _NO_ROOM:
                raise NoRoomError(error.retry_after_s) from None
            return _refused(claim, error)
        except _BrokenError:
            return Outcome(False, unanswered(claim.request_id, claim.custom_id, *UNKNOWN))
        return Outcome(True, _result(claim, 200, body))

    async def _answer(self, claim: Claim, metadata: Pairs) -> bytes:
        request = httpbody_pb2.HttpBody(content_type="application/json", data=claim.body)
        stream = self._streams.get(claim.batch.fields["endpoint"])
        try:
            if stream is None:
                answer = await self._embed(request, metadata=metadata, wait_for_ready=True)
                return bytes(answer.data)
            call = stream(request, metadata=metadata, wait_for_ready=True)
            try:
                return b"".join([message.data async for message in call])
            finally:
                call.cancel()
        except grpc.aio.AioRpcError as error:
            said = from_rpc_error(error)
            if said is None and error.code() is grpc.StatusCode.UNAVAILABLE:
                raise _BrokenError from None
            raise said or local_reply(error, orjson.loads(claim.body)["model"]) from None


def _refused(claim: Claim, error: MeshError) -> Outcome:
    return Outcome(False, _result(claim, error.http_status, error.openai_body().encode()))


def _result(claim: Claim, status: int, body: bytes) -> bytes:
    return answered(claim.request_id, claim.custom_id, status, body)


def _is_json(body: bytes) -> bool:
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return True
