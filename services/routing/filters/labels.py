"""Refuses nodes by what their operators say of them."""

from collections.abc import Collection, Mapping

from services.routing.node import NodeView

Rules = Mapping[str, Collection[str]]
"""Values by label."""


class LabelFilter:
    """Lets through nodes with an allowed value for each label of `allow`, and none of `deny`.

    Args:
        allow: A node without the label is refused.
        deny: A node without the label is let through.
    """

    def __init__(self, allow: Rules, deny: Rules) -> None:
        self._allow = allow
        self._deny = deny

    def refusal(self, node: NodeView) -> str:
        """Returns the label that keeps the node from taking the call."""
        labels = node.labels
        for label, values in self._allow.items():
            if labels.get(label) not in values:
                return f"label {label} not allowed"
        for label, values in self._deny.items():
            if labels.get(label) in values:
                return f"label {label} denied"
        return ""
