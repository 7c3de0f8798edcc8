"""Why a call cannot be sent anywhere."""

from collections.abc import Sequence

from infermesh.errors.v1 import errors_pb2
from services.kit.errors import MeshError
from services.routing.node import NodeView
from services.routing.view import MeshView

_MIN_RETRY_S, _MAX_RETRY_S = 1, 30


def nothing_for(
    view: MeshView, models: Sequence[str], full: Sequence[NodeView], now: float
) -> MeshError:
    """Returns the refusal of a call for which there is no node.

    Args:
        view: The mesh.
        models: The models that it may be answered with; the first is named.
        full: Nodes that could take it if their queues were not full.
        now: The monotonic clock's time.
    """
    model = models[0]
    if full:
        return MeshError(
            errors_pb2.ERROR_REASON_OVERLOADED,
            f"Every node that serves the model `{model}` has its queue full. Try again later.",
            metadata={"model": model},
            retry_after_s=_drain_s(full, now),
        )
    if not any(view.knows(each) for each in models):
        return model_not_found(model)
    return MeshError(
        errors_pb2.ERROR_REASON_NO_NODE_AVAILABLE,
        f"No node serves the model `{model}` now. Try again later.",
        metadata={"model": model},
    )


def model_not_found(model: str) -> MeshError:
    """Returns the refusal of a call for a model that is unknown or that its key may not use."""
    return MeshError(
        errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
        f"The model `{model}` does not exist or you do not have access to it.",
        param="model",
        metadata={"model": model},
    )


def _drain_s(nodes: Sequence[NodeView], now: float) -> int:
    """Returns after about how many seconds one of the nodes has room, 1 to 30.

    A node's average time to the first token is how long its queue has been taking lately.
    """
    known = [told[0] for node in nodes if (told := node.time_to_first_token(now))]
    return round(min(max(min(known, default=0.0), _MIN_RETRY_S), _MAX_RETRY_S))
