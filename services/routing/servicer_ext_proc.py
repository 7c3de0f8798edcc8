"""Envoy's external processing protocol, as an endpoint picker speaks it to gateways not our own."""

from typing import Any

import grpc
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from services.routing.deciding import Decider
from services.routing.picking import Picking

SERVICE_NAME = "envoy.service.ext_proc.v3.ExternalProcessor"


def add_to_server(decider: Decider, server: grpc.aio.Server) -> None:
    """Serves `Process`."""

    async def process(requests: Any, _: object) -> Any:
        picking = Picking(decider.decide, decider.router.served)
        async for request in requests:
            for reply in picking.on_message(request):
                yield reply
            decider.settle_soon()
            if picking.is_over:
                return

    handler: Any = grpc.stream_stream_rpc_method_handler(
        process, request_deserializer=pb.ProcessingRequest.FromString
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE_NAME, {"Process": handler}),)
    )
