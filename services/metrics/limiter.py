"""Calls auth's limiter: to tell it what calls took, and to ask how it limits."""

import logging

import grpc

from infermesh.auth.v1 import limit_service_pb2, limit_service_pb2_grpc

log = logging.getLogger(__name__)

_ASK_TIMEOUT_S = 1.0
_SETTLE_TIMEOUT_S = 5.0


class Limiter:
    """Auth's limiter, as this service sees it.

    Args:
        channel: To auth; None where there is none.
    """

    def __init__(self, channel: grpc.aio.Channel | None) -> None:
        self._stub = None if channel is None else limit_service_pb2_grpc.LimitServiceStub(channel)

    async def settle(self, request: limit_service_pb2.SettleUsageRequest) -> None:
        """Returns when it is taken in.

        Raises:
            grpc.aio.AioRpcError: Auth did not take it in, or not within 5 s.
        """
        if self._stub is not None:
            await self._stub.SettleUsage(request, timeout=_SETTLE_TIMEOUT_S)

    async def ask(self) -> limit_service_pb2.LimiterStatus | None:
        """Returns how auth limits; None where it does not say so within 1 s."""
        if self._stub is None:
            return None
        try:
            return await self._stub.GetLimiterStatus(
                limit_service_pb2.GetLimiterStatusRequest(), timeout=_ASK_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            log.debug("auth does not say how it limits", extra={"error": error.details()})
            return None
