"""The mesh as routing knows it: a copy of the registry's, kept current by its watch."""

from collections.abc import Callable, Iterable, Sequence

from infermesh.registry.v1 import node_service_pb2, resources_pb2
from services.routing.sent import SentCounter

STALE_S = 3.0
"""After how long without news a load report says nothing any more."""


class NodeView:
    """One node.

    Attributes:
        ready: Whether its state is READY.
        slots: Requests that its engine runs at the same time; None when it does not say.
        sent: Calls sent to it that its report does not show yet.
        last_picked: The number of the decision that chose it last.
    """

    __slots__ = (
        "_load",
        "_load_at",
        "_report_time",
        "address",
        "last_picked",
        "models",
        "node_id",
        "ready",
        "sent",
        "slots",
        "state",
    )

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.address = ""
        self.state: resources_pb2.NodeState.ValueType = resources_pb2.NODE_STATE_OFFLINE
        self.ready = False
        self.models: tuple[str, ...] = ()
        self.slots: int | None = None
        self.sent = SentCounter()
        self.last_picked = 0
        self._load: int | None = None
        self._load_at = 0.0
        self._report_time = (0, 0)

    def load(self, now: float) -> int | None:
        """Returns the reported running and queued requests; None when they are not known."""
        return self._load if now - self._load_at < STALE_S else None

    def update(self, node: resources_pb2.Node, now: float) -> bool:
        """Takes in what the registry says; returns whether more than the load changed."""
        report_time = (node.report_time.seconds, node.report_time.nanos)
        if report_time != self._report_time:
            self._report_time = report_time
            self._load_at = now
            self.sent.settle(now)
        self._load = _reported_load(node.load)
        self.slots = node.load.slots if node.load.HasField("slots") else None
        models = tuple(model.name for model in node.models)
        after = (node.address, node.state, models)
        if after == (self.address, self.state, self.models):
            return False
        self.address, self.state, self.models = after
        self.ready = node.state == resources_pb2.NODE_STATE_READY
        return True


def _reported_load(load: resources_pb2.NodeLoad) -> int | None:
    # One of the two alone is a lower bound, and better than nothing.
    if not load.HasField("running") and not load.HasField("queued"):
        return None
    return load.running + load.queued


class MeshView:
    """All nodes and models.

    Args:
        clock: A monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.synced = False
        self._clock = clock
        self._nodes: dict[str, NodeView] = {}
        self._models: set[str] = set()
        self._hosts: dict[str, list[NodeView]] = {}
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Has `listener` called when nodes come, go, or change in more than their load."""
        self._listeners.append(listener)

    def nodes(self) -> Iterable[NodeView]:
        """Returns the nodes by id."""
        return (self._nodes[node_id] for node_id in sorted(self._nodes))

    def knows(self, model: str) -> bool:
        """Says whether the catalogue has a model."""
        return model in self._models

    def hosting(self, model: str) -> Sequence[NodeView]:
        """Returns the nodes that list a model, whatever their state."""
        return self._hosts.get(model, ())

    def apply(self, message: node_service_pb2.WatchMeshResponse) -> None:
        """Takes in one message of the watch; a `synced` one replaces everything."""
        now = self._clock()
        changed = False
        if message.synced:
            self._models.clear()
            gone = self._nodes.keys() - {node.node_id for node in message.nodes}
            for node_id in gone:
                del self._nodes[node_id]
            changed = bool(gone) or not self.synced
            self.synced = True
        for node_id in message.deleted_node_ids:
            changed |= self._nodes.pop(node_id, None) is not None
        self._models.difference_update(message.deleted_models)
        self._models.update(model.name for model in message.models)
        for node in message.nodes:
            view = self._nodes.get(node.node_id)
            if view is None:
                view = self._nodes[node.node_id] = NodeView(node.node_id)
            changed |= view.update(node, now)
        if changed:
            self._hosts = {}
            for view in self.nodes():
                for model in view.models:
                    self._hosts.setdefault(model, []).append(view)
            for listener in self._listeners:
                listener()
