"""Finds the answer to a question that was asked before in other words."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import grpc

from services.inference.requests import OpenAIRequest
from services.inference.response_cache.key import CachedModels, Form
from services.inference.response_cache.semantic.embedding import QuestionEmbedder
from services.inference.response_cache.semantic.nearest import Nearest, Vector, unit_vector
from services.inference.response_cache.semantic.question import Question, question_of
from services.inference.response_cache.semantic.wording import may_mean_the_same
from services.inference.response_cache.store import Answer, AnswerStore
from services.inference.settings import InferenceSettings
from services.kit.caller import Caller

Embed = Callable[[str], Awaitable[Sequence[float] | None]]
"""Returns the components of a text's vector, or None where there is none."""


class Asked(NamedTuple):
    """A question with its vector."""

    question: Question
    vector: Vector


class SemanticCache:
    """The questions of the answers that a node keeps.

    Args:
        models: The models whose answers are given to near questions.
        embed: Makes vectors.
        nearest: Where they are kept.
        threshold: How near is near enough, as a cosine.
    """

    def __init__(
        self, models: CachedModels, embed: Embed, nearest: Nearest, threshold: float
    ) -> None:
        self._models = models
        self._embed = embed
        self._nearest = nearest
        self._threshold = threshold

    async def ask(
        self, caller: Caller, request: OpenAIRequest, model: str, form: Form, generation: int
    ) -> Asked | None:
        """Returns a request's question; None where only the same request has the same answer.

        So it is too where nobody embeds the question in time.

        Args:
            caller: As `key_of` has it, like all that follow.
            request: …
            model: …
            form: …
            generation: …
        """
        if model not in self._models:
            return None
        question = question_of(caller, request, model, form, generation)
        if question is None:
            return None
        values = await self._embed(question.text)
        vector = None if values is None else unit_vector(values)
        return None if vector is None else Asked(question, vector)

    def find(self, asked: Asked, key: bytes, store: AnswerStore) -> Answer | None:
        """Returns the answer to the nearest question that is near enough and not plainly another.

        From then on the store has it for this question too, for as long as it has it at all.

        Args:
            asked: The question.
            key: What stands for its request.
            store: The answers.
        """
        rest, text = asked.question
        for near in self._nearest.find(rest, asked.vector, self._threshold):
            if not may_mean_the_same(text, near.text):
                continue
            answer = store.lend(near.key, key, near.similarity)
            if answer is not None:
                return answer
            self._nearest.drop(near.key)
        return None

    def keep(self, asked: Asked, key: bytes) -> None:
        """Remembers the question of an answer that is kept under `key`."""
        self._nearest.put(asked.question.rest, key, asked.question.text, asked.vector)


def semantic_cache_of(
    settings: InferenceSettings,
    channel: grpc.aio.Channel,
    credentials: tuple[tuple[str, str], ...],
) -> SemanticCache:
    """Returns an empty one as the operator wants it.

    Args:
        settings: What the operator wants.
        channel: To the front door.
        credentials: The node's, as metadata.
    """
    embedder = QuestionEmbedder(
        channel,
        credentials,
        settings.semantic_cache_embedding_model,
        settings.semantic_cache_timeout_ms / 1000,
    )
    return SemanticCache(
        CachedModels.read(settings.semantic_cache_models),
        embedder.embed,
        Nearest(settings.semantic_cache_vectors),
        settings.semantic_cache_threshold,
    )
