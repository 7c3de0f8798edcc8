"""RoutingService over gRPC."""

from typing import Any

import grpc

from infermesh.routing.v1 import routing_service_pb2 as pb
from infermesh.routing.v1 import routing_service_pb2_grpc
from services.routing.book import Book
from services.routing.contracts import invalid
from services.routing.explaining import Candidate, Explainer
from services.routing.facts import Facts

_Context = grpc.aio.ServicerContext[Any, Any]


class RoutingServicer(routing_service_pb2_grpc.RoutingServiceServicer):
    """Implements RoutingService.

    Args:
        explainer: Decides without counting.
        book: The policies.
    """

    def __init__(self, explainer: Explainer, book: Book) -> None:
        self._explainer = explainer
        self._book = book

    async def Explain(self, request: pb.ExplainRequest, context: _Context) -> pb.ExplainResponse:
        """Says which nodes a call would go to now, and why."""
        plan = None
        if request.policy:
            plan = self._book.plan(request.policy)
            if plan is None:
                raise invalid("policy", f"There is no policy `{request.policy}`.")
        facts = Facts(model=request.model)
        if request.body and not facts.take_body(request.body.encode()):
            raise invalid("body", "The body must be a JSON object.")
        found = self._explainer.explain(facts, plan)
        return pb.ExplainResponse(
            model=request.model,
            ordered_node_ids=[node.node_id for node in found.nodes],
            candidates=[_message(one) for one in found.candidates],
            policy=found.policy,
            models=found.models,
            expected_cached=found.expected_cached,
        )


def _message(one: Candidate) -> pb.Candidate:
    return pb.Candidate(
        node_id=one.node.node_id,
        address=one.node.address,
        eligible=not one.refusal,
        refusal=one.refusal,
        score=one.score,
        reported_load=one.reported_load,
        sent_since_report=one.node.sent.total,
        model=one.model,
        scores=one.scores,
        pressure=one.pressure,
        cached=one.cached,
        cache_reliability=one.node.reliability.value,
        tier=one.node.tier,
    )
