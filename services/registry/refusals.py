"""What the registry says no with, besides the catalogue's own."""

from infermesh.errors.v1 import errors_pb2
from services.kit.errors import MeshError


class UntrueError(MeshError):
    """A node said what is not so; who does that too often is a suspect."""


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


def somebody_else(node_id: str, address: str) -> MeshError:
    """Returns the error for a join with an address at which the node is not to be found."""
    return UntrueError(
        errors_pb2.ERROR_REASON_FAILED_PRECONDITION,
        f"Another than the node `{node_id}` answers at {address}: it joined with an address that "
        "is not its own. See --listen and --advertise.",
        metadata={"node_id": node_id, "address": address},
    )


def other_key(node_id: str) -> MeshError:
    """Returns the error for a join under the name of a live node that has another key."""
    return _not_now(
        f"Another node is in the mesh as `{node_id}`, with a key of its own. Give "
        "this one another name.",
        node_id=node_id,
    )


def foreign_loopback(address: str, source: str) -> MeshError:
    """Returns the error for a join from elsewhere with an address of the mesh's own machine."""
    return UntrueError(
        errors_pb2.ERROR_REASON_INVALID_ARGUMENT,
        f"join.address: {address} is the mesh's own machine, and the node is on {source}. "
        "See --advertise.",
        param="join.address",
    )


def nobody_there(node_id: str, address: str) -> MeshError:
    """Returns the error for a join with an address at which nobody answers."""
    return MeshError(
        errors_pb2.ERROR_REASON_SERVICE_UNAVAILABLE,
        f"The mesh cannot reach the node `{node_id}` at {address}. See --listen and --advertise.",
        metadata={"node_id": node_id, "address": address},
    )


def suspect(node_id: str, lies: int, last: str, wait_s: int) -> MeshError:
    """Returns the error for a node that was refused too often of late."""
    return _not_now(
        f"The node `{node_id}` was refused {lies} times within a minute and may try again in "
        f"{wait_s} s. The latest reason: {last}",
        node_id=node_id,
        retry_after_s=str(wait_s),
    )


def key_refused(key_id: str) -> MeshError:
    """Returns the error with which a stream ends whose key may no longer make the call."""
    return MeshError(
        errors_pb2.ERROR_REASON_INVALID_API_KEY,
        f"The key `{key_id}`, with which the call began, may no longer make it.",
        metadata={"key_id": key_id},
    )


def bad_load(field: str, message: str) -> MeshError:
    """Returns the error for a number in a report that cannot be true."""
    return UntrueError(
        errors_pb2.ERROR_REASON_INVALID_ARGUMENT,
        f"report.load.{field}: {message}",
        param=f"report.load.{field}",
    )


def too_many_models(max_models: int) -> MeshError:
    """Returns the error for one model too many."""
    return _not_now(f"The catalogue holds {max_models} models already; delete some first.")


def not_attached(node_id: str) -> MeshError:
    """Returns the error for a command to a node that cannot be told it now."""
    return _not_now(f"The node `{node_id}` is not connected to the mesh now.", node_id=node_id)


def left_meanwhile(node_id: str) -> MeshError:
    """Returns the error for a command whose node lost its stream in the middle."""
    return MeshError(
        errors_pb2.ERROR_REASON_SERVICE_UNAVAILABLE,
        f"The node `{node_id}` lost its connection to the mesh in the middle of the command.",
        metadata={"node_id": node_id},
    )


def busy(node_id: str, max_commands: int) -> MeshError:
    """Returns the error for one command too many."""
    return _not_now(f"The node `{node_id}` runs {max_commands} commands already.", node_id=node_id)


def nobody_pulls(model: str) -> MeshError:
    """Returns the error for a pull where no node finds models by their names."""
    return _not_now(
        f"No ready node with Ollama is there to pull `{model}`. See `infermesh models load`.",
        model=model,
    )


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
