"""What the registry keeps on disk, and the contract of whatever keeps it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True)
class ServedModelRow:
    """A model as one node serves it; `capabilities` are `Capability` numbers.

    Attributes:
        base_model: The model that a LoRA adapter changes; empty for others.
        input_price: US dollars for a million tokens of the prompt; None is unknown.
        output_price: US dollars for a million tokens of the answer; None is unknown.
    """

    name: str
    capabilities: tuple[int, ...]
    context_length: int
    base_model: str = ""
    input_price: float | None = None
    output_price: float | None = None


@dataclass(frozen=True)
class NodeRow:
    """A node as it is kept.

    Attributes:
        draining: Whether an operator drains the node.
        state: A `NodeState` number.
        last_report_time: The latest report at the time of writing, not the latest there was.
        labels: What the operator says of the node.
        tier: Nodes of a lower tier are preferred.
    """

    node_id: str
    address: str
    engine: str
    engine_version: str
    models: tuple[ServedModelRow, ...]
    draining: bool
    state: int
    join_time: datetime
    last_report_time: datetime | None
    labels: Mapping[str, str] = field(default_factory=dict)
    tier: int = 0


@dataclass(frozen=True)
class ModelRow:
    """A model of the catalogue as it is kept; `capabilities` are `Capability` numbers."""

    name: str
    capabilities: tuple[int, ...]
    context_length: int
    create_time: datetime


class Store(Protocol):
    """Keeps nodes and models.

    Every method may raise `services.kit.database.StoreUnavailableError`.
    """

    async def load(self) -> tuple[Sequence[NodeRow], Sequence[ModelRow]]:
        """Returns everything that is kept."""
        ...

    async def save(
        self,
        nodes: Sequence[NodeRow],
        models: Sequence[ModelRow],
        gone_node_ids: Collection[str] = (),
    ) -> None:
        """Writes all of these or none, over what is kept under the same names.

        The `create_time` of a model that is kept already does not change.

        Args:
            nodes: Nodes to write.
            models: Models to write.
            gone_node_ids: Nodes to delete; those that are not kept are passed over.
        """
        ...

    async def delete_model(self, name: str) -> None:
        """Deletes a model; does nothing when there is none of that name."""
        ...
