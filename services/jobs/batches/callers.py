"""Finds out what a batch's key may do now: a batch outlives the call that made it.

Auth is asked about each line, as it is about each call of a caller's, and reserves what the line
may take of the key's limits. Where it does not answer no line begins.
"""

import grpc

from infermesh.auth.v1 import (
    admission_service_pb2_grpc,
    key_service_pb2,
    key_service_pb2_grpc,
)
from infermesh.errors.v1 import errors_pb2
from services.jobs.batches.admission import request_of
from services.jobs.batches.claim import Claim
from services.jobs.identity import Pairs
from services.kit import headers
from services.kit.errors import MeshError, from_rpc_error

_R = errors_pb2.ErrorReason
_TIMEOUT_S = 5.0
_AWAY_S = 5.0
# Somebody may make a limit larger meanwhile.
_MOST_S = 10.0
_FULL = frozenset({_R.ERROR_REASON_RATE_LIMIT_EXCEEDED, _R.ERROR_REASON_INSUFFICIENT_QUOTA})


class NotNowError(Exception):
    """Lines of a key must wait.

    Args:
        wait_s: For how many seconds at least.
    """

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"wait {wait_s} s")
        self.wait_s = wait_s


class Callers:
    """Asks auth about keys.

    Args:
        channel: To auth.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._keys = key_service_pb2_grpc.KeyServiceStub(channel)
        self._admission = admission_service_pb2_grpc.AdmissionServiceStub(channel)

    async def knows(self, key_id: str) -> bool:
        """Says whether a key is one of the mesh's.

        Raises:
            NotNowError: Auth does not answer.
        """
        try:
            request = key_service_pb2.GetKeyRequest(key_id=key_id)
            await self._keys.GetKey(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            said = from_rpc_error(error)
            if said is not None and said.reason == _R.ERROR_REASON_NOT_FOUND:
                return False
            raise NotNowError(_AWAY_S) from None
        return True

    async def admit(self, claim: Claim) -> Pairs:
        """Returns the metadata with which a line goes to a node, once it may run.

        Its reservation, if it has one, ends as a caller's does; see `AdmissionService`.

        Raises:
            MeshError: Its key may not do this; the line is never to run.
            NotNowError: A limit has no room, or nobody knows.
        """
        try:
            said = await self._admission.AdmitCall(request_of(claim), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise _meaning(from_rpc_error(error)) from None
        return (*said.headers.items(), (headers.REQUEST_ID, claim.request_id))


def _meaning(said: MeshError | None) -> MeshError | NotNowError:
    if said is None or said.http_status >= 500:
        return NotNowError(_AWAY_S)
    if said.reason not in _FULL:
        return said
    if said.retry_after_s is not None:
        return NotNowError(min(_MOST_S, said.retry_after_s))
    # A limit of nothing stops a key for as long as somebody wants it to; one that is smaller than
    # the line alone is the line's fault.
    return NotNowError(_MOST_S) if _is_zero(said.metadata.get("allowed", "")) else said


def _is_zero(allowed: str) -> bool:
    return allowed != "" and not allowed.strip("0.")
