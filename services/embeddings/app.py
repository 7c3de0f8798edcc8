"""Puts the embeddings service together."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence

import grpc
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from infermesh.embeddings.v1 import (
    embeddings_service_pb2_grpc,
    ollama_embeddings_service_pb2_grpc,
)
from infermesh.metrics.v1 import usage_service_pb2_grpc
from services.embeddings.accounting import Accounting
from services.embeddings.batcher import Batcher, Limits
from services.embeddings.cache import RedisCache
from services.embeddings.embedder import Embedder
from services.embeddings.node import EmbeddingNodes
from services.embeddings.servicer import EmbeddingsServicer
from services.embeddings.servicer_ollama import OllamaEmbeddingsServicer
from services.embeddings.settings import EmbeddingsSettings
from services.kit import globs, tls, workers
from services.kit.audit_inference import InferenceAudit
from services.kit.audit_sender import auth_channel, reporting
from services.kit.channels import open_channel
from services.kit.guard import guarded
from services.kit.guardrails.guard import PromptGuard
from services.kit.server import App, Health
from services.kit.usage_spool import open_spool

_REDIS_TIMEOUT_S = 0.1
_REDIS_CONNECTIONS = 16


def make_app(settings: EmbeddingsSettings) -> App:
    """Returns the service for the settings."""

    @contextlib.asynccontextmanager
    async def app(server: grpc.aio.Server, _: Health) -> AsyncIterator[Sequence[str]]:
        async with contextlib.AsyncExitStack() as stack:
            client = redis.asyncio.Redis(connection_pool=_redis_pool(settings.redis_url))
            stack.push_async_callback(client.aclose, close_connection_pool=True)
            inference = await stack.enter_async_context(
                _channel(settings.inference_address, tls.ENVOY, settings)
            )
            metrics = await stack.enter_async_context(
                _channel(settings.metrics_address, tls.service("metrics"), settings)
            )
            spool = await stack.enter_async_context(
                open_spool(
                    workers.own(settings.state_dir) / "usage",
                    usage_service_pb2_grpc.UsageServiceStub(metrics).RecordUsage,
                )
            )
            batcher = Batcher(
                EmbeddingNodes(inference, settings.inference_timeout_s).embed,
                Limits(
                    texts=settings.batch_texts,
                    window_s=settings.batch_window_ms / 1000,
                    calls=settings.batch_calls,
                ),
            )
            stack.push_async_callback(batcher.close)
            auth = await stack.enter_async_context(auth_channel(settings))
            recorder = await stack.enter_async_context(reporting(auth, settings.state_dir))
            audit = InferenceAudit(recorder, "embeddings") if recorder else None
            guard = PromptGuard()
            stack.callback(guard.close)
            cache = RedisCache(client, ttl_s=settings.cache_ttl_s, clock=time.monotonic)
            accounting = Accounting(spool)
            servicer = EmbeddingsServicer(
                Embedder(cache, batcher, _cutting(settings.matryoshka_models)),
                accounting,
                guard,
                audit,
            )
            embeddings_service_pb2_grpc.add_EmbeddingsServiceServicer_to_server(
                servicer, guarded(server)
            )
            ollama_embeddings_service_pb2_grpc.add_OllamaEmbeddingsServiceServicer_to_server(
                OllamaEmbeddingsServicer(servicer, accounting), guarded(server)
            )
            yield (
                "infermesh.embeddings.v1.EmbeddingsService",
                "infermesh.embeddings.v1.OllamaEmbeddingsService",
            )

    return app


def _cutting(patterns: str) -> Callable[[str], bool]:
    # Without patterns `globs.read` would allow all.
    return globs.read(patterns).allow if patterns else lambda model: False


def _channel(address: str, peer: str, settings: EmbeddingsSettings) -> grpc.aio.Channel:
    return open_channel(address, peer, settings.tls_dir)


def _redis_pool(url: str) -> "redis.asyncio.BlockingConnectionPool":
    return redis.asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=_REDIS_CONNECTIONS,
        timeout=_REDIS_TIMEOUT_S,
        socket_timeout=_REDIS_TIMEOUT_S,
        socket_connect_timeout=_REDIS_TIMEOUT_S,
        # The cache has its own way with failures.
        retry=Retry(NoBackoff(), 0),
    )
