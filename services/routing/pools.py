"""Which nodes may take a call at all, kept from one call to the next.

Filters look at what changes rarely (states, labels, engines, models), so their findings are kept
until the mesh changes, and a decision starts from nodes that have passed.
"""

from collections.abc import Sequence
from itertools import groupby

from services.routing.filters.capability import CapabilityFilter
from services.routing.filters.framework import FrameworkFilter
from services.routing.node import NodeView
from services.routing.plugins import Filter
from services.routing.policy import Plan
from services.routing.view import MeshView

_MAX_KEPT = 4096


class Tier:
    """Nodes that are as good as each other before load is looked at.

    Attributes:
        nodes: The nodes, in the order of their digests.
        digests: Theirs.
        mask: Their bits in the prefix index.
        turn: Where the next sample of them starts.
        pressure: Their mean pressure, and until when it may be used.
    """

    __slots__ = ("digests", "mask", "nodes", "pressure", "pressure_until", "turn")

    def __init__(self, nodes: Sequence[NodeView]) -> None:
        self.nodes = nodes
        self.digests = [node.digest for node in nodes]
        self.mask = 0
        for node in nodes:
            self.mask |= node.bit
        self.turn = 0
        self.pressure = 0.0
        self.pressure_until = 0.0


_Key = tuple[str, int, str, int, bool]


class Pools:
    """Finds the nodes for a call.

    Args:
        view: The mesh.
    """

    def __init__(self, view: MeshView) -> None:
        self._view = view
        self._kept: dict[_Key, Sequence[Tier]] = {}
        self._engines: frozenset[str] = frozenset()
        view.on_change(self._renew)
        self._renew()

    def tiers(
        self, model: str, plan: Plan, framework: str, needs: int, *, is_fallback: bool = False
    ) -> Sequence[Tier]:
        """Returns the nodes that may take a call, the lowest tier first; empty when none may.

        What a caller prefers, and what it needs of the engine, counts where at least one node has
        it. Otherwise the call goes to the others: a node knows best what it cannot do, and says so
        with the field at fault. To a fallback model that cannot do it nothing goes at all.
        """
        if not self._view.hosting(model):
            return ()
        if framework not in self._engines:
            # Callers write both names as they like: what no node has must not fill what is kept.
            framework = ""
        key = (model, id(plan), framework, needs, is_fallback)
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            found = self._kept[key] = self._find(*key, plan)
        return found

    def _renew(self) -> None:
        self._kept.clear()
        self._engines = frozenset(node.engine for node in self._view.all_nodes())

    def forget(self) -> None:
        """Looks at all nodes anew, since policies changed."""
        self._kept.clear()

    def _find(
        self, model: str, _: int, framework: str, needs: int, is_fallback: bool, plan: Plan
    ) -> Sequence[Tier]:
        nodes: Sequence[NodeView] = [
            node for node in self._view.hosting(model) if not refusal(node, plan.filters)
        ]
        if framework:
            wish = FrameworkFilter(framework)
            nodes = [node for node in nodes if not wish.refusal(node)] or nodes
        if needs:
            need = CapabilityFilter(model, needs)
            able = [node for node in nodes if not need.refusal(node)]
            nodes = able if able or is_fallback else nodes
        by_tier = sorted(nodes, key=lambda node: (node.tier, node.digest))
        return [Tier(list(same)) for _, same in groupby(by_tier, key=lambda node: node.tier)]


def refusal(node: NodeView, filters: Sequence[Filter]) -> str:
    """Returns why the first filter that refuses a node does so; empty when none does."""
    for one in filters:
        if why := one.refusal(node):
            return why
    return ""
