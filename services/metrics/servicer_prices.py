"""The RPCs of prices."""

import datetime as dt
from decimal import Decimal
from typing import Any

import grpc

from infermesh.errors.v1 import errors_pb2
from infermesh.metrics.v1 import price_service_pb2 as pb
from infermesh.metrics.v1 import price_service_pb2_grpc
from services.kit.errors import MeshError
from services.metrics.convert import text, timestamp
from services.metrics.decimals import to_text
from services.metrics.price_store import Prices
from services.metrics.prices import Price

_Context = grpc.aio.ServicerContext[Any, Any]


class PriceServicer(price_service_pb2_grpc.PriceServiceServicer):
    """Serves the prices."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices

    async def SetPrice(self, request: pb.SetPriceRequest, context: _Context) -> pb.Price:
        """Holds for what is written to the ledger from now on."""
        said = request.price
        price = Price(
            said.model,
            Decimal(said.input_usd),
            Decimal(said.cached_input_usd) if said.HasField("cached_input_usd") else None,
            Decimal(said.output_usd),
            dt.datetime.now(dt.UTC),
        )
        await self._prices.put(price)
        return _to_proto(price)

    async def GetPrice(self, request: pb.GetPriceRequest, context: _Context) -> pb.Price:
        """Returns the price of a model."""
        return _found(await self._prices.get(text(request.model, "model")), request.model)

    async def ListPrices(
        self, request: pb.ListPricesRequest, context: _Context
    ) -> pb.ListPricesResponse:
        """Returns all prices."""
        return pb.ListPricesResponse(prices=map(_to_proto, await self._prices.list()))

    async def DeletePrice(self, request: pb.DeletePriceRequest, context: _Context) -> pb.Price:
        """Makes the cost of what the model answers unknown from now on."""
        return _found(await self._prices.delete(text(request.model, "model")), request.model)


def _found(price: Price | None, model: str) -> pb.Price:
    if price is None:
        raise MeshError(
            errors_pb2.ERROR_REASON_NOT_FOUND,
            f"The model `{model}` has no price.",
            metadata={"model": model},
        )
    return _to_proto(price)


def _to_proto(price: Price) -> pb.Price:
    cached = price.cached_input
    return pb.Price(
        model=price.model,
        input_usd=to_text(price.input),
        cached_input_usd=None if cached is None else to_text(cached),
        output_usd=to_text(price.output),
        update_time=timestamp(price.update_time),
    )
