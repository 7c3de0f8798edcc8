"""A mesh for routing's tests: a view with everything that decides over it, and a clock to turn."""

import json
from collections import Counter

from infermesh.registry.v1 import node_service_pb2
from infermesh.registry.v1 import resources_pb2 as r
from services.routing.book import Book
from services.routing.explaining import Candidate, Explainer
from services.routing.facts import Facts
from services.routing.policy import Plan, Policy
from services.routing.pools import Pools
from services.routing.prefix_index import PrefixIndex
from services.routing.prompt import cut
from services.routing.router import Outcome, Router
from services.routing.scheduler import Scheduler
from services.routing.splits import SplitCounts
from services.routing.view import MeshView


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Mesh:
    def __init__(self, *models: str, entries: int = 400_000) -> None:
        self.clock = Clock()
        self.view = MeshView(self.clock, PrefixIndex(entries))
        catalogue = [r.Model(name=name) for name in models or ("m", "idle")]
        self.view.apply(node_service_pb2.WatchMeshResponse(synced=True, models=catalogue))
        self.pools = Pools(self.view)
        self.book = Book(self.pools.forget)
        self.counts = SplitCounts()
        self.scheduler = Scheduler(self.view, self.pools, self.clock)
        self.router = Router(self.scheduler, self.book, self.counts)
        self.explainer = Explainer(self.view, self.router, self.clock)

    def report(
        self,
        node_id: str,
        load: int | None = 0,
        *,
        slots: int | None = 4,
        state: "r.NodeState.ValueType" = r.NODE_STATE_READY,
        models: tuple[str, ...] = ("m",),
        **more: object,
    ) -> None:
        node = r.Node(node_id=node_id, address=f"{node_id}:1", state=state)
        node.engine = str(more.pop("engine", "sim"))
        node.tier = int(str(more.pop("tier", 0)))
        node.labels.update(more.pop("labels", {}))  # type: ignore[arg-type]
        capabilities = more.pop("capabilities", ())
        served = more.pop("served", {})
        for name in models:
            node.models.append(
                r.ServedModel(name=name, capabilities=capabilities, **served)  # type: ignore
            )
        if load is not None:
            node.load.running = load
            node.load.queued = 0
        if slots is not None:
            node.load.slots = slots
        for name, value in more.items():
            if name == "loaded_adapters":
                node.load.loaded_adapters.extend(value)  # type: ignore[arg-type]
            else:
                setattr(node.load, name, value)
        node.report_time.FromMicroseconds(round(self.clock.now * 1e6))
        self.view.apply(node_service_pb2.WatchMeshResponse(nodes=[node]))

    def route(self, facts: Facts | None = None) -> Outcome:
        return self.router.route(facts or Facts(model="m"))

    def order(self, facts: Facts | None = None) -> list[str]:
        return [node.node_id for node in self.route(facts).decision.nodes]

    def pick(self, times: int = 1, facts: Facts | None = None) -> Counter[str]:
        return Counter(self.order(facts)[0] for _ in range(times))

    def explain(self, facts: Facts | None = None) -> dict[str, Candidate]:
        found = self.explainer.explain(facts or Facts(model="m"), None)
        return {one.node.node_id: one for one in found.candidates}

    def use(self, policy: Policy) -> None:
        """Has every call decided by a policy."""
        plan = Plan(policy)
        self.book.plan_for = lambda model, level="": plan  # type: ignore[method-assign]
        self.pools.forget()


def chat(text: str, model: str = "m", **more: object) -> Facts:
    """Returns the facts of a chat with one system prompt and a question."""
    messages = [{"role": "system", "content": text}, {"role": "user", "content": "?"}]
    body = json.dumps({"messages": messages})
    facts = Facts(model=model, **more)  # type: ignore[arg-type]
    taken = cut(body.encode())
    assert taken is not None
    facts.take_prompt(*taken)
    return facts
