"""From what a gateway tells of a call to where it goes: alias, policy, fallbacks, decision."""

from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from infermesh.routing.v1 import split_service_pb2 as pb
from services.kit.globs import ModelGlobs
from services.routing import refusals
from services.routing.book import Book
from services.routing.facts import Facts
from services.routing.hedging import HedgeBudget
from services.routing.policy import Plan
from services.routing.request import Request
from services.routing.scheduler import Decision, Scheduler
from services.routing.splits import SplitCounts


@dataclass(slots=True)
class Outcome:
    """Where a call goes.

    Attributes:
        decision: The nodes and models.
        plan: What it was decided by.
        is_renamed: Whether the best model is not the one that the caller named, which is an alias
            or has no node.
        hedge_after_s: After how long without a first byte a second node is asked; 0 for never.
    """

    decision: Decision
    plan: Plan
    is_renamed: bool = False
    hedge_after_s: float = 0.0


class Router:
    """Routes calls.

    Args:
        scheduler: Chooses nodes.
        book: What operators have set.
        counts: Told what splits choose.
    """

    def __init__(self, scheduler: Scheduler, book: Book, counts: SplitCounts) -> None:
        self._scheduler = scheduler
        self._book = book
        self._counts = counts
        self._budgets: dict[str, HedgeBudget] = {}

    def route(self, facts: Facts) -> Outcome:
        """Decides where a call goes, and counts it.

        Raises:
            MeshError: `MODEL_NOT_FOUND`, `NO_NODE_AVAILABLE` or `OVERLOADED`.
        """
        split = self._book.split(facts.model)
        model = facts.model
        if split is not None:
            model = split.choose(_caller(facts, split.sticky_by))
            if facts.globs is not None and not facts.globs.allow(model):
                model = self._allowed_target(facts, facts.globs)
            self._counts.count(facts.model, model)
        plan = self._book.plan_for(model, facts.level)
        decision = self._scheduler.decide(self.request(facts, model), plan)
        outcome = Outcome(decision, plan, is_renamed=decision.models[0] != facts.model)
        hedging = plan.policy.hedging
        if hedging is not None and facts.is_streamed and len(decision.nodes) > 1:
            budget = self._budgets.setdefault(plan.policy.name, HedgeBudget())
            if budget.allows(hedging, lambda: self._scheduler.mean_ttft(decision.nodes)):
                outcome.hedge_after_s = hedging.delay_s
        return outcome

    def settle(self) -> None:
        """Does what `route` left to do, which the answer need not wait for."""
        self._scheduler.settle()

    def served(self, outcome: Outcome, address: str) -> None:
        """Takes note of the address that answered, where a gateway reports it."""
        if address != outcome.decision.nodes[0].address:
            self._scheduler.moved(outcome.decision, address)

    def models(self, facts: Facts) -> Sequence[str]:
        """Returns the models that a call may be answered with, best first.

        A split's largest target stands for its alias, and no turn is taken.
        """
        message = self._book.splits.get(facts.model)
        model = facts.model
        if message is not None:
            model = max(message.targets, key=lambda target: target.weight).model
        return self._chain(model, facts)

    def plan(self, facts: Facts, model: str) -> Plan:
        """Returns what a call to a model is decided by."""
        return self._book.plan_for(model, facts.level)

    def explain(self, facts: Facts, model: str, plan: Plan) -> Decision:
        """Decides as `route` would now, shows all scores, and counts nothing.

        Raises:
            MeshError: As `route`.
        """
        return self._scheduler.explain(self.request(facts, model), plan)

    def request(self, facts: Facts, model: str) -> Request:
        """Returns the request that the facts make for a model."""
        who = facts.session_id or facts.user
        return Request(
            models=self._chain(model, facts),
            framework=facts.framework,
            needs=facts.needs,
            session=xxhash.xxh3_64_intdigest(who.encode()) if who else None,
            taken=facts.taken if facts.is_cached else None,
            size=facts.size,
            # Nodes keep answers for themselves: who asks the same goes where it was asked before,
            # however short it is.
            reads_ends=facts.reuses_answers,
            is_streamed=facts.is_streamed,
            debug=facts.debug,
            subset=facts.subset,
        )

    def _allowed_target(self, facts: Facts, globs: ModelGlobs) -> str:
        # A key that may not use all targets keeps to the largest that it may use.
        targets = self._book.splits[facts.model].targets
        allowed = [each for each in targets if each.weight and globs.allow(each.model)]
        if not allowed:
            raise refusals.model_not_found(facts.model)
        return max(allowed, key=lambda target: target.weight).model

    def _chain(self, model: str, facts: Facts) -> Sequence[str]:
        fallbacks = facts.fallbacks or self._book.fallbacks(model)
        if not fallbacks and facts.globs is None:
            return (model,)
        models = list(dict.fromkeys((model, *fallbacks)))
        if facts.globs is None:
            return models
        allowed = [each for each in models if facts.globs.allow(each)]
        if not allowed:
            raise refusals.model_not_found(facts.model)
        return allowed


def _caller(facts: Facts, sticky_by: pb.Stickiness.ValueType) -> str:
    if sticky_by == pb.STICKINESS_KEY:
        return facts.key_id
    if sticky_by == pb.STICKINESS_USER:
        return facts.user
    if sticky_by == pb.STICKINESS_SESSION:
        return facts.session_id
    return ""
