"""Keeps the prices by which auth reserves current with those of the metrics service."""

import asyncio
import logging

import grpc

from infermesh.metrics.v1 import price_service_pb2, price_service_pb2_grpc
from services.auth.reservation import Prices

log = logging.getLogger(__name__)

_TIMEOUT_S = 1.0
_INTERVAL_S = 1.0


async def follow_prices(channel: grpc.aio.Channel, prices: Prices) -> None:
    """Reads all prices once a second until it is cancelled.

    While metrics is away the last ones stay.

    Args:
        channel: To the metrics service.
        prices: What to keep current.
    """
    stub = price_service_pb2_grpc.PriceServiceStub(channel)
    in_touch = True
    while True:
        try:
            answer = await stub.ListPrices(
                price_service_pb2.ListPricesRequest(), timeout=_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            if in_touch:
                log.warning(
                    "prices cannot be read; reserving by the last known",
                    extra={"error": error.code().name},
                )
            in_touch = False
        else:
            prices.replace(answer.prices)
            if not in_touch:
                log.info("prices are read again", extra={"count": len(answer.prices)})
            in_touch = True
        await asyncio.sleep(_INTERVAL_S)
