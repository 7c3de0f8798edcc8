"""Envoy's external processing protocol, as an endpoint picker speaks it."""

import logging
from typing import Any

import grpc
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from infermesh.errors.v1 import errors_pb2
from services.kit.errors import MeshError
from services.kit.grpc_server import GrpcServer
from services.routing import replies
from services.routing.facts import Facts
from services.routing.gateway import facts_of
from services.routing.picking import Picking
from services.routing.router import Outcome, Router
from services.routing.view import MeshView

log = logging.getLogger(__name__)

SERVICE_NAME = "envoy.service.ext_proc.v3.ExternalProcessor"

ONE_MESSAGE = ("x-mesh-ext-proc", "headers")
"""The metadata by which our own Envoy says that it sends request headers and nothing else."""

_PATH = f"/{SERVICE_NAME}/Process"


class ExternalProcessor(grpc.GenericRpcHandler):
    """Answers gateways that ask where a call goes.

    `Process` is a stream in the proto. Our own Envoy sends one message, so it is served as a call
    of one message and one answer, which looks the same on the wire and takes half the time of a
    stream; the end of the stream tells Envoy that nothing more follows. It says so by
    `ONE_MESSAGE`; every other gateway gets the stream.

    Args:
        view: The mesh.
        router: Decides.
    """

    def __init__(self, view: MeshView, router: Router) -> None:
        self._view = view
        self._router = router
        self._unary: Any = None
        self._stream: Any = grpc.stream_stream_rpc_method_handler(
            self._process_stream, request_deserializer=pb.ProcessingRequest.FromString
        )

    def add_to(self, server: grpc.aio.Server) -> None:
        """Adds the protocol to a server."""
        # A plain function costs no task, where the server can call one.
        process: Any = self.process if isinstance(server, GrpcServer) else self._process_async
        self._unary = grpc.unary_unary_rpc_method_handler(
            process, request_deserializer=pb.ProcessingRequest.FromString
        )
        server.add_generic_rpc_handlers((self,))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Returns the handler of a call; None for other methods."""
        if handler_call_details.method != _PATH:
            return None
        metadata: Any = handler_call_details.invocation_metadata
        return self._unary if ONE_MESSAGE in metadata else self._stream

    def process(self, request: pb.ProcessingRequest, context: object) -> bytes:
        """Answers the one message of our own Envoy with an encoded `ProcessingResponse`."""
        facts = facts_of(request)
        outcome = self.decide(facts)
        if outcome is None:
            return replies.CONTINUE
        if isinstance(outcome, MeshError):
            return replies.refusal(outcome, rest=facts.is_rest)
        return replies.destination(outcome, facts)

    def decide(self, facts: Facts) -> Outcome | MeshError | None:
        """Returns where a call goes, why it is refused, or None where there is nothing to decide.

        Without a model there is nothing to choose by, and before the first view nothing to choose
        from.
        """
        if not facts.model or not self._view.synced:
            return None
        try:
            return self._router.route(facts)
        except MeshError as error:
            return error
        except Exception:
            log.exception("a decision failed")
            return MeshError(errors_pb2.ERROR_REASON_INTERNAL, "The mesh failed to route the call.")

    async def _process_async(self, request: pb.ProcessingRequest, context: object) -> bytes:
        return self.process(request, context)

    async def _process_stream(self, requests: Any, context: object) -> Any:
        picking = Picking(self.decide, self._router.served)
        async for request in requests:
            for reply in picking.on_message(request):
                yield reply
            if picking.is_over:
                return
