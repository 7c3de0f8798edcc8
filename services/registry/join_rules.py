"""Who may join the mesh, and who has to make way."""

from collections.abc import Mapping, Sequence

from infermesh.registry.v1 import node_service_pb2
from services.registry import refusals
from services.registry.address import canonical_address
from services.registry.node import LiveNode

Nodes = Mapping[str, LiveNode]
"""The nodes of the mesh by id."""


def check(nodes: Nodes, join: node_service_pb2.JoinNode, key_id: str, max_nodes: int) -> None:
    """Checks a join, and gives its address the canonical form.

    Args:
        nodes: Who is there.
        join: What the node says of itself.
        key_id: The key that it joins with; empty when it came past Envoy.
        max_nodes: How many nodes there may be.

    Raises:
        MeshError: `INVALID_ARGUMENT` when the address is not an IP address and port or belongs to
            another live node; `FAILED_PRECONDITION` when the mesh is full of nodes that are not
            offline, or a live node of this id has another key.
    """
    join.address = canonical_address(join.address)
    before = nodes.get(join.node_id)
    if before and before.online and before.attachment and before.attachment.key_id != key_id:
        # Whoever has a key of a node could otherwise push any other node out by its name. A
        # machine that was set up anew waits until the lease of its old stream has run out.
        raise refusals.other_key(join.node_id)
    for holder in holders(nodes, join):
        # Without a stream the holder is but a lease that a machine left behind.
        if holder.online and holder.attachment:
            raise refusals.bad_address(
                f"join.address: {join.address} belongs to node `{holder.resource.node_id}`"
            )
    is_full = join.node_id not in nodes and len(nodes) >= max_nodes
    if is_full and all(node.online for node in nodes.values()):
        raise refusals.full(max_nodes)


def holders(nodes: Nodes, join: node_service_pb2.JoinNode) -> Sequence[LiveNode]:
    """Returns the other nodes that have the address of a join."""
    return [
        node
        for node in nodes.values()
        if node.resource.address == join.address and node.resource.node_id != join.node_id
    ]


def least_missed(nodes: Nodes) -> LiveNode:
    """Returns the offline node that was heard of least lately; there must be one."""
    return min((node for node in nodes.values() if not node.online), key=LiveNode.last_seen)
