"""What operators have set, in memory: policies, models' routes, splits."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from google.protobuf.message import DecodeError

from infermesh.routing.v1 import policy_service_pb2, split_service_pb2
from services.kit.errors import MeshError
from services.routing import store
from services.routing.contracts import message_of, policy_of
from services.routing.policy import BUILT_IN, BY_LEVEL, DEFAULT, Plan, Policy
from services.routing.splits import Split
from services.routing.store import Document, DocumentStore

log = logging.getLogger(__name__)


class Book:
    """The policies, routes and splits that decide now.

    Attributes:
        policies: By name, built-in ones included.
        routes: By model.
        splits: By alias.

    Args:
        on_change: Called when plans are made anew, for what is kept by plan is old then.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._on_change = on_change
        self._reloading = asyncio.Lock()
        self._built_in = {name: Plan(policy) for name, policy in BUILT_IN.items()}
        self._plans: dict[str, Plan] = dict(self._built_in)
        self._splits: dict[str, Split] = {}
        self._fallbacks: dict[str, Sequence[str]] = {}
        self.policies: Mapping[str, policy_service_pb2.Policy] = _built_in_messages()
        self.routes: Mapping[str, policy_service_pb2.ModelRoute] = {}
        self.splits: Mapping[str, split_service_pb2.Split] = {}

    def plan(self, name: str) -> Plan | None:
        """Returns a policy's plan; None where there is no such policy."""
        return self._plans.get(name)

    def plan_for(self, model: str, level: str = "") -> Plan:
        """Returns the plan for a call.

        Args:
            model: The first model that it may be answered with.
            level: The caller's `optimization_level`; what is no level counts as none.
        """
        name = BY_LEVEL.get(level)
        if name is None:
            route = self.routes.get(model)
            name = route.policy if route is not None and route.policy else DEFAULT
        # A policy that went while its route stayed would leave the model without any.
        return self._plans.get(name) or self._plans[DEFAULT]

    def fallbacks(self, model: str) -> Sequence[str]:
        """Returns the models to answer with when no node can serve this one, best first."""
        return self._fallbacks.get(model, ())

    def split(self, name: str) -> Split | None:
        """Returns what stands behind an alias; None where the name is none."""
        return self._splits.get(name)

    async def reload(self, documents: DocumentStore) -> None:
        """Takes over what the store holds now.

        One at a time: of two readings at once the older could be taken over last, and would hold
        until the next change.

        Raises:
            MeshError: `STORE_UNAVAILABLE`, and nothing changes.
        """
        async with self._reloading:
            self.load(await documents.all())

    def load(self, documents: Sequence[Document]) -> None:
        """Takes over all documents. One that cannot be read leaves the rest as they are."""
        policies = _built_in_messages()
        routes: dict[str, policy_service_pb2.ModelRoute] = {}
        splits: dict[str, split_service_pb2.Split] = {}
        wanted: dict[str, Policy] = {}
        for kind, name, body in documents:
            try:
                if kind == store.POLICY:
                    message = policy_service_pb2.Policy.FromString(body)
                    wanted[name] = policy_of(message)
                    policies[name] = message
                elif kind == store.ROUTE:
                    routes[name] = policy_service_pb2.ModelRoute.FromString(body)
                elif kind == store.SPLIT:
                    splits[name] = split_service_pb2.Split.FromString(body)
            except (DecodeError, MeshError) as error:
                log.exception(
                    "a stored document cannot be read",
                    extra={"kind": kind, "document": name, "error": str(error)},
                )
        self._take_plans(wanted)
        for alias, split in splits.items():
            if split != self.splits.get(alias):
                old = self._splits.get(alias)
                self._splits[alias] = Split(split, old.turns if old else None)
        for alias in self._splits.keys() - splits.keys():
            del self._splits[alias]
        self._fallbacks = {model: tuple(route.fallback_models) for model, route in routes.items()}
        self.policies, self.routes, self.splits = policies, routes, splits

    def _take_plans(self, wanted: Mapping[str, Policy]) -> None:
        plans = dict(self._built_in)
        for name, policy in wanted.items():
            old = self._plans.get(name)
            plans[name] = old if old is not None and old.policy == policy else Plan(policy)
        changed = plans != self._plans
        self._plans = plans
        if changed:
            self._on_change()


def _built_in_messages() -> dict[str, policy_service_pb2.Policy]:
    return {name: message_of(policy) for name, policy in BUILT_IN.items()}
