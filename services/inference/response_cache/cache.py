"""What a node keeps of its answers, as the operator wants it."""

from typing import TYPE_CHECKING, NamedTuple

import grpc

from services.inference.response_cache.flights import Flights
from services.inference.response_cache.key import CachedModels
from services.inference.response_cache.store import AnswerStore
from services.inference.settings import InferenceSettings

if TYPE_CHECKING:
    from services.inference.response_cache.semantic.cache import SemanticCache


class ResponseCache(NamedTuple):
    """What a node keeps of its answers.

    Args:
        store: The answers.
        flights: The answers that are being made.
        models: The models whose answers are kept without being asked to.
        semantic: Knows the questions of the answers; None where only the same question counts.
    """

    store: AnswerStore
    flights: Flights
    models: CachedModels
    semantic: "SemanticCache | None" = None


def response_cache_of(
    settings: InferenceSettings,
    channel: grpc.aio.Channel,
    credentials: tuple[tuple[str, str], ...],
) -> ResponseCache | None:
    """Returns an empty cache as the operator wants it; None for none.

    Args:
        settings: What the operator wants.
        channel: To the front door.
        credentials: The node's, as metadata.
    """
    if not settings.response_cache_mib:
        return None
    semantic = None
    if settings.semantic_cache_models:
        # Takes 20 MB, which all others save.
        from services.inference.response_cache.semantic.cache import semantic_cache_of

        semantic = semantic_cache_of(settings, channel, credentials)
    return ResponseCache(
        AnswerStore(
            max_bytes=settings.response_cache_mib * 1024 * 1024,
            max_answer_bytes=settings.response_cache_answer_kib * 1024,
            ttl_s=settings.response_cache_ttl_s,
        ),
        # Whoever waits for another's answer waits as for the engine.
        Flights(max_waiting=settings.max_queued, max_wait_s=settings.max_queue_wait_s),
        CachedModels.read(settings.response_cache_models),
        semantic,
    )
