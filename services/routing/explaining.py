"""Says what a decision would be, and shows every node that could have been chosen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from infermesh.errors.v1 import errors_pb2
from services.kit.errors import MeshError
from services.routing.facts import Facts
from services.routing.node import NodeView
from services.routing.policy import Plan
from services.routing.pools import refusal
from services.routing.pressure import is_full
from services.routing.router import Router
from services.routing.view import MeshView

_NOTHING = (
    errors_pb2.ERROR_REASON_NO_NODE_AVAILABLE,
    errors_pb2.ERROR_REASON_OVERLOADED,
)


@dataclass(slots=True)
class Candidate:
    """One node that hosts a model, rated or refused."""

    node: NodeView
    model: str
    refusal: str = ""
    score: float = 0.0
    scores: Mapping[str, float] = field(default_factory=dict)
    pressure: float = 0.0
    cached: float = 0.0
    reported_load: int | None = None


@dataclass(slots=True)
class Explanation:
    """A decision and its reasons; without nodes where none could serve."""

    policy: str
    models: Sequence[str]
    nodes: Sequence[NodeView]
    expected_cached: float | None
    candidates: Sequence[Candidate]


class Explainer:
    """Explains decisions.

    Args:
        view: The mesh.
        router: Decides.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, view: MeshView, router: Router, clock: Callable[[], float]) -> None:
        self._view = view
        self._router = router
        self._clock = clock

    def explain(self, facts: Facts, plan: Plan | None) -> Explanation:
        """Decides as the next call would be decided, and counts nothing.

        Args:
            facts: The call.
            plan: What to decide by; None for what the call would be decided by.

        Raises:
            MeshError: `MODEL_NOT_FOUND`.
        """
        now = self._clock()
        models = self._router.models(facts)
        plan = plan or self._router.plan(facts, models[0])
        try:
            decision = self._router.explain(facts, models[0], plan)
        except MeshError as error:
            if error.reason not in _NOTHING:
                raise
            decision = None
        candidates = [
            Candidate(
                node=one.node,
                model=one.model,
                refusal=_full(one.node, plan, now),
                score=one.score,
                scores=one.scores,
                pressure=one.pressure,
                cached=one.cached,
                reported_load=one.node.load(now),
            )
            for one in (decision.rated if decision else ())
        ]
        rated = {(one.node.node_id, one.model) for one in candidates}
        for model in models:
            for node in self._view.hosting(model):
                if (node.node_id, model) not in rated:
                    why = refusal(node, plan.filters) or _reason(node, plan, now)
                    load = node.load(now)
                    candidates.append(Candidate(node, model, why, reported_load=load))
        return Explanation(
            policy=plan.policy.name,
            models=decision.models if decision else models,
            nodes=decision.nodes if decision else (),
            expected_cached=decision.expected_cached if decision else None,
            candidates=candidates,
        )


def _reason(node: NodeView, plan: Plan, now: float) -> str:
    return _full(node, plan, now) or "not preferred"


def _full(node: NodeView, plan: Plan, now: float) -> str:
    limit = plan.policy.max_pressure
    return "queue full" if limit and is_full(node, now, limit) else ""
