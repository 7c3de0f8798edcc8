"""Checks policies and splits, and turns them from messages into what decides."""

import math
from collections.abc import Iterable

from infermesh.errors.v1 import errors_pb2
from infermesh.routing.v1 import policy_service_pb2 as pb
from infermesh.routing.v1 import split_service_pb2
from services.kit.errors import MeshError
from services.routing.catalogue import PICKERS, SCORERS
from services.routing.policy import (
    DEFAULT_LOAD_FACTOR,
    DEFAULT_MAX_PRESSURE,
    Hedging,
    Policy,
)

_DEFAULT_BUDGET = 0.05


def policy_of(message: pb.Policy) -> Policy:
    """Returns the policy that a message describes.

    Raises:
        MeshError: `INVALID_ARGUMENT`, naming the field of a plugin that does not exist or of a
            number that is out of range.
    """
    for name, weight in message.scorers.items():
        field = f"policy.scorers.{name}"
        if name not in SCORERS:
            raise invalid(field, f"There is no scorer `{name}`; there are {_list(SCORERS)}.")
        if not (math.isfinite(weight) and weight >= 0):
            raise invalid(field, f"The weight of `{name}` must be 0 or more.")
    picker = message.picker or "best_first"
    if picker not in PICKERS:
        raise invalid(
            "policy.picker", f"There is no picker `{picker}`; there are {_list(PICKERS)}."
        )
    weights = {name: weight for name, weight in sorted(message.scorers.items()) if weight > 0}
    if picker == "best_first" and not weights:
        raise invalid("policy.scorers", "The picker `best_first` needs a scorer of some weight.")
    hedging = None
    if message.HasField("hedging"):
        delay = message.hedging.delay
        budget = message.hedging.budget or _DEFAULT_BUDGET
        hedging = Hedging(delay.seconds + delay.nanos / 1e9, budget)
    return Policy(
        name=message.name,
        weights=weights,
        picker=picker,
        load_factor=(
            message.load_factor if message.HasField("load_factor") else DEFAULT_LOAD_FACTOR
        ),
        max_pressure=(
            message.max_pressure if message.HasField("max_pressure") else DEFAULT_MAX_PRESSURE
        ),
        allow={key: frozenset(each.values) for key, each in message.allow_labels.items()},
        deny={key: frozenset(each.values) for key, each in message.deny_labels.items()},
        hedging=hedging,
    )


def message_of(policy: Policy) -> pb.Policy:
    """Returns a built-in policy as a message."""
    return pb.Policy(
        name=policy.name,
        scorers=policy.weights,
        picker=policy.picker,
        load_factor=policy.load_factor,
        max_pressure=policy.max_pressure,
        built_in=True,
    )


def check_split(split: split_service_pb2.Split) -> None:
    """Checks what a split's proto cannot say of itself.

    Raises:
        MeshError: `INVALID_ARGUMENT`, naming the field.
    """
    seen: set[str] = set()
    for i, target in enumerate(split.targets):
        if target.model in seen or target.model == split.alias:
            why = "is a target twice" if target.model in seen else "is the alias itself"
            raise invalid(f"split.targets[{i}].model", f"`{target.model}` {why}.")
        seen.add(target.model)
    if not any(target.weight for target in split.targets):
        raise invalid("split.targets", "At least one target needs a weight above 0.")


def invalid(field: str, message: str) -> MeshError:
    """Returns the refusal of a field."""
    return MeshError(errors_pb2.ERROR_REASON_INVALID_ARGUMENT, message, param=field)


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))
