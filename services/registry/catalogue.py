"""The catalogue of models, as it follows from the nodes that serve them."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from infermesh.errors.v1 import errors_pb2
from infermesh.registry.v1 import resources_pb2
from services.kit.errors import MeshError
from services.registry import refusals
from services.registry.node import READY, LiveNode, timestamp
from services.registry.store import ModelRow

MAX_MODELS = 16_384
"""How many models the catalogue holds at most."""


class Catalogue:
    """Knows each model that a node ever served, and which nodes list it.

    Args:
        now: Tells the time of day.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._models: dict[str, resources_pb2.Model] = {}
        self._nodes: dict[str, dict[str, LiveNode]] = {}

    def restore(self, rows: Iterable[ModelRow]) -> None:
        """Takes in the models that were kept."""
        for row in rows:
            self._models[row.name] = resources_pb2.Model(
                name=row.name,
                capabilities=[
                    resources_pb2.Capability.ValueType(number) for number in row.capabilities
                ],
                context_length=row.context_length,
                create_time=timestamp(row.create_time),
            )

    def all(self) -> list[resources_pb2.Model]:
        """Returns the models by name."""
        return [self._models[name] for name in sorted(self._models)]

    def find(self, name: str) -> resources_pb2.Model | None:
        """Returns a model, or None."""
        return self._models.get(name)

    def get(self, name: str) -> resources_pb2.Model:
        """Returns a model.

        Raises:
            MeshError: `MODEL_NOT_FOUND`.
        """
        model = self._models.get(name)
        if model is None:
            raise MeshError(
                errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
                f"The model `{name}` does not exist or you do not have access to it.",
                param="model",
                metadata={"model": name},
            )
        return model

    def is_served(self, name: str) -> bool:
        """Says whether a node that is not offline serves the model."""
        return any(node.online for node in self._nodes.get(name, {}).values())

    def new_rows(self, models: Iterable[resources_pb2.ServedModel]) -> list[ModelRow]:
        """Returns the rows of those models that the catalogue does not have yet.

        Raises:
            MeshError: `FAILED_PRECONDITION` when it has no room for them.
        """
        rows = {
            model.name: ModelRow(
                model.name,
                tuple(sorted(set(model.capabilities))),
                model.context_length,
                self._now(),
            )
            for model in models
            if model.name not in self._models
        }
        if rows and len(self._models) + len(rows) > MAX_MODELS:
            raise refusals.too_many_models(MAX_MODELS)
        return list(rows.values())

    def row(self, name: str) -> ModelRow | None:
        """Returns a model as it is kept, or None when there is none."""
        model = self._models.get(name)
        if model is None:
            return None
        return ModelRow(
            name,
            tuple(model.capabilities),
            model.context_length,
            model.create_time.ToDatetime(UTC),
        )

    def replace_node(self, before: LiveNode | None, after: LiveNode) -> None:
        """Notes that a node now lists other models."""
        if before:
            self.remove_node(before)
        node_id = after.resource.node_id
        for name in after.model_names:
            self._nodes.setdefault(name, {})[node_id] = after

    def remove_node(self, node: LiveNode) -> None:
        """Notes that a node lists nothing any more."""
        # A join may list a model twice.
        for name in set(node.model_names):
            listing = self._nodes[name]
            del listing[node.resource.node_id]
            if not listing:
                del self._nodes[name]

    def refresh(self, name: str) -> bool:
        """Brings a model up to date with its nodes.

        A model that no node serves keeps what it was last known to be.

        Returns:
            Whether anything changed.
        """
        serving = [node for node in self._nodes.get(name, {}).values() if node.online]
        before = self._models.get(name)
        if before is None and not serving:
            return False
        after = resources_pb2.Model(
            name=name,
            create_time=before.create_time if before else timestamp(self._now()),
            ready_node_count=sum(node.resource.state == READY for node in serving),
        )
        if before and not serving:
            after.capabilities.extend(before.capabilities)
            after.context_length = before.context_length
        served = [model for node in serving for model in node.resource.models if model.name == name]
        after.capabilities.extend(sorted({c for model in served for c in model.capabilities}))
        after.context_length = max(
            (model.context_length for model in served), default=after.context_length
        )
        self._models[name] = after
        return after != before

    def delete(self, name: str) -> None:
        """Forgets a model; does nothing when it is forgotten already."""
        self._models.pop(name, None)
