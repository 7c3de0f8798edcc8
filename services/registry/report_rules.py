"""What the numbers of a report must be to each other and to those before.

The range of each alone stands in the proto.
"""

from infermesh.registry.v1 import resources_pb2
from services.registry import refusals

_GROWING = ("expected_cached_tokens", "cached_tokens", "prompt_tokens", "engine_generation")


def check_load(load: resources_pb2.NodeLoad, before: resources_pb2.NodeLoad | None) -> None:
    """Checks a load.

    Args:
        load: What the node reports.
        before: What it reported last on the same stream; None at first.

    Raises:
        MeshError: `INVALID_ARGUMENT`.
    """
    for field in ("expected_cached_tokens", "cached_tokens"):
        if getattr(load, field) > load.prompt_tokens:
            raise refusals.bad_load(field, "is more than prompt_tokens")
    if before is None:
        return
    for field in _GROWING:
        if getattr(load, field) < getattr(before, field):
            raise refusals.bad_load(field, "is less than it was")
