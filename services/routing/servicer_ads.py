"""Envoy's aggregated discovery service, for endpoints."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from services.routing.eds import Assignments, Subscription

SERVICE_NAME = "envoy.service.discovery.v3.AggregatedDiscoveryService"

_Context = grpc.aio.ServicerContext[Any, Any]


class DiscoveryServicer(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """Implements the state-of-the-world stream.

    Args:
        assignments: The endpoints.
        stopping: Set when the process stops; streams end then.
    """

    def __init__(self, assignments: Assignments, stopping: asyncio.Event) -> None:
        self._assignments = assignments
        self._stopping = stopping

    async def StreamAggregatedResources(
        self,
        request_iterator: AsyncIterator[discovery_pb2.DiscoveryRequest],
        context: _Context,
    ) -> AsyncIterator[discovery_pb2.DiscoveryResponse]:
        """Sends the endpoints and every later version of them."""
        wake = asyncio.Event()
        subscription = Subscription()
        closed = False

        async def read() -> None:
            nonlocal closed
            async for request in request_iterator:
                subscription.on_request(request)
                wake.set()
            closed = True
            wake.set()

        async def wake_to_stop() -> None:
            await self._stopping.wait()
            wake.set()

        tasks = (asyncio.create_task(read()), asyncio.create_task(wake_to_stop()))
        self._assignments.add_listener(wake.set)

        def ended(_: Any) -> None:
            self._assignments.remove_listener(wake.set)
            for task in tasks:
                task.cancel()

        # The stubs declare the callback's type as a class, not as a protocol.
        context.add_done_callback(cast(Any, ended))
        while not closed and not self._stopping.is_set():
            if response := subscription.next_response(self._assignments.current):
                yield response
            await wake.wait()
            wake.clear()
