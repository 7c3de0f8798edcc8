"""What the registry says no with, besides the catalogue's own."""

from infermesh.errors.v1 import errors_pb2
from services.kit.errors import MeshError


def no_node(node_id: str) -> MeshError:
    """Returns the error for a node that is not in the mesh."""
    return MeshError(
        errors_pb2.ERROR_REASON_NOT_FOUND,
        f"There is no node `{node_id}`.",
        param="node_id",
        metadata={"node_id": node_id},
    )


def bad_address(message: str) -> MeshError:
    """Returns the error for a join with an address that cannot be taken."""
    return MeshError(errors_pb2.ERROR_REASON_INVALID_ARGUMENT, message, param="join.address")


def not_offline(node_id: str) -> MeshError:
    """Returns the error for the deletion of a node that is in the mesh."""
    return _not_now(
        f"The node `{node_id}` is in the mesh; drain and stop it first.", node_id=node_id
    )


def deleted(node_id: str) -> MeshError:
    """Returns the error with which the stream of a deleted node ends."""
    return _not_now(f"The node `{node_id}` was deleted while it was offline.", node_id=node_id)


def full(max_nodes: int) -> MeshError:
    """Returns the error for one node too many."""
    return _not_now(f"The mesh holds {max_nodes} live nodes already.")


def served(model: str) -> MeshError:
    """Returns the error for the deletion of a model that is in use."""
    return _not_now(
        f"The model `{model}` is served by a node; drain and stop the node first.", model=model
    )


def _not_now(message: str, **metadata: str) -> MeshError:
    return MeshError(errors_pb2.ERROR_REASON_FAILED_PRECONDITION, message, metadata=metadata)
