"""Envoy's external processing protocol: one decision per call, from its headers alone."""

import logging
from typing import Any

import grpc
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from infermesh.errors.v1 import errors_pb2
from services.kit import headers
from services.kit.errors import MeshError
from services.routing import replies
from services.routing.scheduler import Scheduler
from services.routing.view import MeshView

log = logging.getLogger(__name__)

SERVICE_NAME = "envoy.service.ext_proc.v3.ExternalProcessor"

_ORIGINAL_PATH = "x-envoy-original-path"


class ExternalProcessor:
    """Answers the one message that Envoy sends per call.

    Args:
        view: The mesh.
        scheduler: Chooses nodes.
    """

    def __init__(self, view: MeshView, scheduler: Scheduler) -> None:
        self._view = view
        self._scheduler = scheduler

    def add_to(self, server: grpc.aio.Server) -> None:
        """Adds the protocol to a server.

        `Process` is a stream in the proto. Envoy sends request headers and nothing else, so it is
        served as a call of one message and one answer, which looks the same on the wire and takes
        half the time of a stream; the end of the stream tells Envoy that nothing more follows.
        """
        handler: Any = grpc.unary_unary_rpc_method_handler(
            self.process, request_deserializer=pb.ProcessingRequest.FromString
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE_NAME, {"Process": handler}),)
        )

    def process(self, request: pb.ProcessingRequest, context: object) -> bytes:
        """Returns the encoded `ProcessingResponse`."""
        model, rest = _read(request)
        # Without a model there is nothing to choose by, and before the first view nothing to
        # choose from.
        if not model or not self._view.synced:
            return replies.CONTINUE
        try:
            nodes = self._scheduler.decide(model)
        except MeshError as error:
            return replies.refusal(error, rest=rest)
        except Exception:
            log.exception("a decision failed")
            fault = MeshError(
                errors_pb2.ERROR_REASON_INTERNAL, "The mesh failed to route the call."
            )
            return replies.refusal(fault, rest=rest)
        return replies.destination(tuple([node.address for node in nodes]))


def _read(request: pb.ProcessingRequest) -> tuple[str, bool]:
    """Returns the model, and whether the caller speaks REST: the transcoder notes its path."""
    model, rest = "", False
    for header in request.request_headers.headers.headers:
        key = header.key
        if key == headers.MODEL:
            model = (header.raw_value or header.value.encode()).decode(errors="replace")
        elif key == _ORIGINAL_PATH:
            rest = True
    return model, rest
