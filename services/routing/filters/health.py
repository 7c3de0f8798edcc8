"""Refuses nodes that take no traffic now."""

from infermesh.registry.v1 import resources_pb2
from services.routing.node import NodeView

_REFUSALS = {
    resources_pb2.NODE_STATE_ENGINE_DOWN: "engine down",
    resources_pb2.NODE_STATE_DRAINING: "draining",
    resources_pb2.NODE_STATE_OFFLINE: "offline",
}


class HealthFilter:
    """Lets through nodes in state READY."""

    def refusal(self, node: NodeView) -> str:
        """Returns the state that keeps the node from taking the call."""
        return "" if node.ready else _REFUSALS.get(node.state, "unknown state")
