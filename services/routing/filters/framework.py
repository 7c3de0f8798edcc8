"""Keeps to the engine that the caller prefers."""

from services.routing.node import NodeView


class FrameworkFilter:
    """Lets through nodes with the engine of `preferred_framework`.

    Args:
        engine: The engine's dialect.
    """

    def __init__(self, engine: str) -> None:
        self._engine = engine

    def refusal(self, node: NodeView) -> str:
        """Returns why the node is not preferred."""
        return "" if node.engine == self._engine else f"not {self._engine}"
