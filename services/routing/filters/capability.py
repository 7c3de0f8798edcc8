"""Keeps to nodes whose engine can do with the model what the call asks for."""

from infermesh.registry.v1 import resources_pb2
from services.routing.node import NodeView

CHAT = 1 << resources_pb2.CAPABILITY_CHAT
TOOLS = 1 << resources_pb2.CAPABILITY_TOOLS
STRUCTURED_OUTPUT = 1 << resources_pb2.CAPABILITY_STRUCTURED_OUTPUT
VISION = 1 << resources_pb2.CAPABILITY_VISION


class CapabilityFilter:
    """Lets through nodes that have all of the capabilities for the model.

    Args:
        model: The model.
        needs: The capabilities, as bits `1 << Capability`.
    """

    def __init__(self, model: str, needs: int) -> None:
        self._model = model
        self._needs = needs

    def refusal(self, node: NodeView) -> str:
        """Returns the capabilities that are missing."""
        missing = self._needs & ~node.served[self._model].capabilities
        if not missing:
            return ""
        names = [
            name.removeprefix("CAPABILITY_").lower().replace("_", " ")
            for name, number in resources_pb2.Capability.items()
            if missing >> number & 1
        ]
        return "no " + ", ".join(names)
