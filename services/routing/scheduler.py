"""Makes a routing decision: filter, score, pick."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.routing.balance import Balance, may_draw
from services.routing.node import NodeView
from services.routing.plugins import Call
from services.routing.policy import Plan
from services.routing.pools import Pools, Tier
from services.routing.pressure import is_full, pressures
from services.routing.prompt import Prompt
from services.routing.refusals import nothing_for
from services.routing.request import Request
from services.routing.sampling import ALL_SCORED, sample
from services.routing.view import MeshView

MAX_ADDRESSES = 8
"""How many nodes a call is given to try at most."""

_PER_TIER = 4
"""How many of them are of one tier and model."""

_MEAN_KEPT_S = 0.05

OnDecision = Callable[[NodeView, Prompt | None], None]


@dataclass(slots=True)
class Rated:
    """A node in a decision.

    Attributes:
        node: The node.
        model: What it would answer with.
        score: 0 to 1, the weighted mean over the scorers that told nodes apart.
        scores: Theirs, by name.
        pressure: How busy it is.
        cached: Which share of the prompt it is taken to have cached.
    """

    node: NodeView
    model: str
    score: float
    scores: dict[str, float]
    pressure: float
    cached: float


@dataclass(slots=True)
class Decision:
    """Where a call goes.

    Attributes:
        nodes: The nodes to try, best first.
        models: The models to answer with, best first.
        expected_cached: Which share of the prompt the first node is taken to have cached; None
            where the prompt is not known.
        rated: All nodes that were scored, where the call asked to see them.
    """

    nodes: list[NodeView] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    expected_cached: float | None = None
    rated: list[Rated] = field(default_factory=list)


class Scheduler:
    """Chooses nodes for calls.

    Args:
        view: The nodes.
        pools: Finds those that may take a call.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, view: MeshView, pools: Pools, clock: Callable[[], float]) -> None:
        self._view = view
        self._pools = pools
        self._clock = clock
        self._index = view.index
        self._balance = Balance(clock())
        self._decisions = 0
        self._listener: OnDecision | None = None
        self._unsettled: tuple[NodeView, Prompt | None] | None = None

    def on_decision(self, listener: OnDecision) -> None:
        """Has `listener` told of each decision: its node, and the prompt where one is known."""
        self._listener = listener

    def decide(self, request: Request, plan: Plan) -> Decision:
        """Chooses nodes for a call, and counts the call as sent to the first.

        Raises:
            MeshError: `MODEL_NOT_FOUND`, `NO_NODE_AVAILABLE`, or `OVERLOADED`.
        """
        now = self._clock()
        decision = self._choose(request, plan, now, show=request.debug)
        first = decision.nodes[0]
        self._decisions += 1
        first.last_picked = self._decisions
        self.count(first, 1, now)
        prompt = request.prompt(decision.models[0]) if plan.needs_prompt else None
        if prompt is not None and not prompt.blocks:
            prompt = None
        if prompt is not None and not decision.expected_cached:
            first.last_cold = self._decisions
        self._unsettled = first, prompt
        return decision

    def settle(self) -> None:
        """Does what the last decision leaves to do, which its caller need not wait for.

        The next decision does it at the latest.
        """
        unsettled, self._unsettled = self._unsettled, None
        if unsettled is None:
            return
        first, prompt = unsettled
        if self._listener is not None:
            self._listener(first, prompt)
        if prompt is not None:
            self._index.insert(first.number, prompt.blocks, prompt.ends, prompt.size)

    def explain(self, request: Request, plan: Plan) -> Decision:
        """Decides as `decide` would now and shows all scores; counts nothing.

        Raises:
            MeshError: As `decide`.
        """
        return self._choose(request, plan, self._clock(), show=True)

    def count(self, node: NodeView, calls: int, now: float) -> None:
        """Counts calls as sent to a node, by this replica or another."""
        node.sent.add(now, calls)
        node.drawn += calls * self._balance.weight(now, self._view.all_nodes())

    def moved(self, decision: Decision, address: str) -> NodeView | None:
        """Counts a call as sent to another of its nodes, which it returns: the first failed."""
        for node in decision.nodes[1:]:
            if node.address == address:
                self.count(node, 1, self._clock())
                return node
        return None

    def mean_ttft(self, nodes: Sequence[NodeView]) -> float | None:
        """Returns the mean reported time to the first token in seconds; None where none tells."""
        now = self._clock()
        known = [told[0] for node in nodes if (told := node.time_to_first_token(now))]
        return sum(known) / len(known) if known else None

    def _choose(self, request: Request, plan: Plan, now: float, *, show: bool) -> Decision:
        self.settle()
        decision = Decision()
        full: list[NodeView] = []
        limit = plan.policy.max_pressure
        for number, model in enumerate(request.models):
            before = len(decision.nodes)
            for tier in self._pools.tiers(
                model, plan, request.framework, request.needs, is_fallback=number > 0
            ):
                room = MAX_ADDRESSES - len(decision.nodes)
                if room <= 0:
                    break
                if request.subset is not None:
                    tier = Tier([node for node in tier.nodes if node.address in request.subset])
                    if not tier.nodes:
                        continue
                call = Call(model, now, session=request.session)
                ranked = self._rank(tier, call, request, plan, decision.rated if show else None)
                nodes = _with_room(ranked, now, limit, full) if limit else ranked
                if nodes and not decision.nodes and call.prompt is not None:
                    decision.expected_cached = call.share(nodes[0])
                decision.nodes.extend(nodes[: min(room, _PER_TIER)])
            if len(decision.nodes) > before:
                decision.models.append(model)
        if not decision.nodes:
            raise nothing_for(self._view, request.models, full, now)
        return decision

    def _rank(
        self, tier: Tier, call: Call, request: Request, plan: Plan, shown: list[Rated] | None
    ) -> list[NodeView]:
        """Returns nodes of a tier, best first; adds their scores to `shown`."""
        nodes = tier.nodes
        if plan.needs_prompt:
            call.prompt = request.prompt(call.model)
            if call.prompt is not None and call.prompt.blocks:
                match = self._index.match(call.prompt.blocks)
                call.match = [(both, n) for bits, n in match if (both := bits & tier.mask)]
        if len(nodes) > ALL_SCORED and shown is None:
            nodes = sample(self._view, tier, call, by_session=plan.needs_session)
        if len(nodes) == 1 and shown is None:
            return [nodes[0]]
        call.pressures = pressures(nodes, call.now)
        call.may_draw = may_draw(
            nodes,
            call.pressures,
            self._mean_pressure(tier, nodes, call),
            plan.policy.load_factor,
            self._balance.weight(call.now, self._view.all_nodes()),
        )
        totals = [0.0] * len(nodes)
        said: list[tuple[str, Sequence[float]]] = []
        spoken = 0.0
        for name, scorer, weight in plan.scorers:
            scores = scorer.scores(nodes, call)
            if scores is not None:
                spoken += weight
                said.append((name, scores))
                totals = [total + weight * each for total, each in zip(totals, scores, strict=True)]
        order = plan.picker.order(nodes, totals)
        if shown is not None:
            for i in order:
                scores_of = {name: scores[i] for name, scores in said}
                score = totals[i] / (spoken or 1.0)
                share = call.share(nodes[i])
                shown.append(
                    Rated(nodes[i], call.model, score, scores_of, call.pressures[i], share)
                )
        return [nodes[i] for i in order]

    def _mean_pressure(self, tier: Tier, nodes: Sequence[NodeView], call: Call) -> float:
        if len(nodes) == len(tier.nodes):
            return sum(call.pressures) / len(nodes)
        if call.now >= tier.pressure_until:
            tier.pressure = sum(pressures(tier.nodes, call.now)) / len(tier.nodes)
            tier.pressure_until = call.now + _MEAN_KEPT_S
        return tier.pressure


def _with_room(
    nodes: Sequence[NodeView], now: float, limit: float, full: list[NodeView]
) -> list[NodeView]:
    """Returns the nodes whose queues are not full; adds the others to `full`."""
    free: list[NodeView] = []
    for node in nodes:
        (full if is_full(node, now, limit) else free).append(node)
    return free
