"""RoutingService over gRPC."""

from typing import Any

import grpc

from infermesh.routing.v1 import routing_service_pb2 as pb
from infermesh.routing.v1 import routing_service_pb2_grpc
from services.routing.scheduler import MAX_ADDRESSES, Rated, Scheduler

_Context = grpc.aio.ServicerContext[Any, Any]


class RoutingServicer(routing_service_pb2_grpc.RoutingServiceServicer):
    """Implements RoutingService.

    Args:
        scheduler: The one that decides.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    async def Explain(self, request: pb.ExplainRequest, context: _Context) -> pb.ExplainResponse:
        """Says which nodes a call would go to now, and why."""
        rated = self._scheduler.explain(request.model)
        eligible = [one.node.node_id for one in rated if not one.refusal]
        return pb.ExplainResponse(
            model=request.model,
            ordered_node_ids=eligible[:MAX_ADDRESSES],
            candidates=[_candidate(one) for one in rated],
        )


def _candidate(rated: Rated) -> pb.Candidate:
    return pb.Candidate(
        node_id=rated.node.node_id,
        address=rated.node.address,
        eligible=not rated.refusal,
        refusal=rated.refusal,
        score=rated.score,
        reported_load=rated.reported_load,
        sent_since_report=rated.node.sent.total,
    )
