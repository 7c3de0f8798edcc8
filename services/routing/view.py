"""The mesh as routing knows it: a copy of the registry's, kept current by its watch."""

from collections.abc import Callable, Iterable, Sequence

import xxhash

from infermesh.registry.v1 import node_service_pb2, resources_pb2
from services.routing.node import NodeView
from services.routing.prefix_index import PrefixIndex


class MeshView:
    """All nodes and models.

    Args:
        clock: A monotonic clock in seconds.
        index: Told of nodes that come and go, and of engines that start anew.
    """

    def __init__(self, clock: Callable[[], float], index: PrefixIndex | None = None) -> None:
        self.synced = False
        self.index = index or PrefixIndex()
        self._clock = clock
        self._nodes: dict[str, NodeView] = {}
        self._by_number: dict[int, NodeView] = {}
        self._models: dict[str, resources_pb2.Model] = {}
        self._hosts: dict[str, list[NodeView]] = {}
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Has `listener` called when nodes come, go, or change in more than their load."""
        self._listeners.append(listener)

    def nodes(self) -> Iterable[NodeView]:
        """Returns the nodes by id."""
        return (self._nodes[node_id] for node_id in sorted(self._nodes))

    def all_nodes(self) -> Iterable[NodeView]:
        """Returns the nodes in any order."""
        return self._nodes.values()

    def node(self, node_id: str) -> NodeView | None:
        """Returns a node, or None where there is none of that id."""
        return self._nodes.get(node_id)

    def numbered(self, number: int) -> NodeView:
        """Returns the node that has a number in the prefix index."""
        return self._by_number[number]

    def knows(self, model: str) -> bool:
        """Says whether the catalogue has a model."""
        return model in self._models

    def model(self, name: str) -> resources_pb2.Model | None:
        """Returns a model of the catalogue; None where it has none of that name."""
        return self._models.get(name)

    def model_names(self) -> Iterable[str]:
        """Returns the names in the catalogue, in any order."""
        return self._models.keys()

    def hosting(self, model: str) -> Sequence[NodeView]:
        """Returns the nodes that list a model, whatever their state."""
        return self._hosts.get(model, ())

    def apply(self, message: node_service_pb2.WatchMeshResponse) -> None:
        """Takes in one message of the watch; a `synced` one replaces everything."""
        now = self._clock()
        changed = False
        if message.synced:
            self._models.clear()
            for node_id in self._nodes.keys() - {node.node_id for node in message.nodes}:
                self._drop(node_id)
                changed = True
            changed |= not self.synced
            self.synced = True
        for node_id in message.deleted_node_ids:
            changed |= self._drop(node_id)
        for name in message.deleted_models:
            self._models.pop(name, None)
        self._models.update((model.name, model) for model in message.models)
        for node in message.nodes:
            changed |= self._update(node, now)
        if changed:
            self._hosts = {}
            for view in self.nodes():
                for model in view.models:
                    self._hosts.setdefault(model, []).append(view)
            for listener in self._listeners:
                listener()

    def _update(self, node: resources_pb2.Node, now: float) -> bool:
        view = self._nodes.get(node.node_id)
        if view is None:
            number = self.index.add_node()
            digest = xxhash.xxh3_64_intdigest(node.node_id.encode())
            view = NodeView(node.node_id, number, digest)
            self._nodes[node.node_id] = self._by_number[number] = view
            view.generation = node.load.engine_generation
        kv_bytes = view.kv_bytes
        changed = view.update(node, now)
        if view.kv_bytes != kv_bytes:
            self.index.set_capacity(view.number, view.kv_bytes)
        gone = view.state == resources_pb2.NODE_STATE_OFFLINE
        # A report without a load, as of a node that has just joined, tells of no generation.
        if gone or (node.HasField("load") and view.generation != node.load.engine_generation):
            view.generation = node.load.engine_generation
            view.reliability.forget()
            self.index.clear(view.number)
        return changed

    def _drop(self, node_id: str) -> bool:
        view = self._nodes.pop(node_id, None)
        if view is None:
            return False
        del self._by_number[view.number]
        self.index.remove_node(view.number)
        return True
