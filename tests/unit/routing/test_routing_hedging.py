"""When a second node may be asked, and what that may cost."""

import math

from envoy.service.ext_proc.v3 import external_processor_pb2

from infermesh.routing.v1 import policy_service_pb2 as pb
from services.routing import replies, store
from services.routing.facts import Facts
from services.routing.hedging import HedgeBudget
from services.routing.policy import Hedging
from services.routing.store import Document
from unit.routing.routing_mesh import Mesh


def allowed(budget: float, delay_s: float, mean_s: float | None, calls: int = 2000) -> int:
    keeper = HedgeBudget()
    hedging = Hedging(delay_s, budget)
    return sum(keeper.allows(hedging, lambda: mean_s) for _ in range(calls))


def test_without_knowledge_the_budget_is_kept_to_strictly() -> None:
    assert allowed(0.05, 1.0, None) in range(100, 103)


def test_calls_that_will_hardly_be_sent_twice_cost_hardly_anything() -> None:
    # One in e^4 calls is slower than four times the mean: 37 of 2000, within the budget of 100.
    assert allowed(0.05, 0.4, 0.1) == 2000
    assert math.exp(-4) < 0.05


def test_when_nodes_get_slow_hedging_stops() -> None:
    assert allowed(0.05, 0.4, 10.0) < 2000 * 0.06


def test_only_streams_with_a_second_node_are_hedged() -> None:
    mesh = Mesh()
    policy = pb.Policy(name="p", scorers={"queue": 1})
    policy.hedging.delay.FromMilliseconds(200)
    policy.hedging.budget = 0.5
    route = pb.ModelRoute(model="m", policy="p")
    mesh.book.load(
        [
            Document(store.POLICY, "p", policy.SerializeToString()),
            Document(store.ROUTE, "m", route.SerializeToString()),
        ]
    )
    mesh.report("a", time_to_first_token=0.01)
    assert mesh.route(Facts(model="m", is_streamed=True)).hedge_after_s == 0
    mesh.report("b", time_to_first_token=0.01)
    assert mesh.route(Facts(model="m", is_streamed=True)).hedge_after_s == 0.2
    assert mesh.route(Facts(model="m", is_streamed=False)).hedge_after_s == 0


def test_envoy_is_told_by_headers_and_sends_a_call_twice_at_most() -> None:
    mesh = Mesh()
    for node_id in "abcdef":
        mesh.report(node_id)
    outcome = mesh.route(Facts(model="m", is_streamed=True))
    outcome.hedge_after_s = 0.25
    answer = external_processor_pb2.ProcessingResponse.FromString(
        replies.destination(outcome, Facts(model="m"))
    )
    found = {
        option.header.key: option.header.raw_value
        for option in answer.request_headers.response.header_mutation.set_headers
    }
    assert found["x-envoy-hedge-on-per-try-timeout"] == b"true"
    assert found["x-envoy-upstream-rq-per-try-timeout-ms"] == b"250"
    assert found["x-envoy-max-retries"] == b"1"
