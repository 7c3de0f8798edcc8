"""What callers can name as `model`, in OpenAI's form: models, aliases, names with fallbacks."""

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from infermesh.registry.v1 import resources_pb2
from infermesh.routing.v1 import openai_model_service_pb2 as pb
from infermesh.routing.v1 import split_service_pb2
from services.kit.globs import ModelGlobs
from services.routing import refusals
from services.routing.book import Book
from services.routing.view import MeshView

_ANY = ModelGlobs((), ())


class ModelList:
    """Lists models as a key sees them.

    Args:
        view: The mesh with its catalogue.
        book: The aliases and the models' fallbacks.
    """

    def __init__(self, view: MeshView, book: Book) -> None:
        self._view = view
        self._book = book

    def all(self, globs: ModelGlobs = _ANY) -> list[pb.OpenAIModel]:
        """Returns by name what is served now, or what has something in its place that is.

        Args:
            globs: What the caller's key may use.
        """
        names = {*self._view.model_names(), *self._book.splits, *self._book.routes}
        return [
            self._describe(name, globs)
            for name in sorted(names)
            if globs.allow(name) and any(map(self._is_served, self._answering(name, globs)))
        ]

    def get(self, name: str, globs: ModelGlobs = _ANY) -> pb.OpenAIModel:
        """Returns what a name stands for.

        Raises:
            MeshError: `MODEL_NOT_FOUND`, also of what the key may not use.
        """
        known = globs.allow(name) and any(
            self._view.knows(each) for each in self._answering(name, globs)
        )
        if not known:
            raise refusals.model_not_found(name)
        return self._describe(name, globs)

    def _describe(self, name: str, globs: ModelGlobs) -> pb.OpenAIModel:
        targets = self._targets(name, globs)
        # A name that only fallbacks answer can do what they can.
        known = [model for each in targets if (model := self._view.model(each)) is not None]
        if not known:
            fallbacks = self._answering(name, globs)
            known = [model for each in fallbacks if (model := self._view.model(each)) is not None]
        described = pb.OpenAIModel(
            id=name,
            object="model",
            created=self._created(name, known).ToSeconds(),
            owned_by="infermesh",
            capabilities=_capabilities(known),
            available=any(map(self._is_ready, self._answering(name, globs))),
            alias_for=targets if name in self._book.splits else (),
            fallback_models=filter(globs.allow, self._book.fallbacks(name)),
        )
        if known and (length := min(model.context_length for model in known)):
            described.context_length = length
        return described

    def _targets(self, name: str, globs: ModelGlobs) -> Sequence[str]:
        """Returns the models that a name stands for: an alias's targets, or itself."""
        split = self._book.splits.get(name)
        return (name,) if split is None else _targets(split, globs)

    def _answering(self, name: str, globs: ModelGlobs) -> Sequence[str]:
        """Returns all models that calls which say the name may be answered with."""
        models = list(self._targets(name, globs))
        for target in tuple(models):
            models.extend(filter(globs.allow, self._book.fallbacks(target)))
        return models

    def _created(self, name: str, known: Sequence[resources_pb2.Model]) -> Timestamp:
        split = self._book.splits.get(name)
        if split is not None:
            return split.create_time
        own = self._view.model(name)
        if own is not None:
            return own.create_time
        return min((model.create_time for model in known), key=Timestamp.ToNanoseconds)

    def _is_served(self, model: str) -> bool:
        return any(
            node.state != resources_pb2.NODE_STATE_OFFLINE for node in self._view.hosting(model)
        )

    def _is_ready(self, model: str) -> bool:
        return any(node.ready for node in self._view.hosting(model))


def _targets(split: split_service_pb2.Split, globs: ModelGlobs) -> list[str]:
    return [each.model for each in split.targets if each.weight and globs.allow(each.model)]


def _capabilities(models: Sequence[resources_pb2.Model]) -> list[str]:
    shared = set.intersection(*(set(model.capabilities) for model in models)) if models else set()
    names = map(resources_pb2.Capability.Name, sorted(shared))
    return [name.removeprefix("CAPABILITY_").lower() for name in names]
