"""Puts the inference proxy together."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import grpc

from infermesh.auth.v1 import certificate_service_pb2_grpc
from infermesh.inference.v1 import identity_service_pb2_grpc, inference_service_pb2_grpc
from infermesh.metrics.v1 import usage_service_pb2, usage_service_pb2_grpc
from infermesh.registry.v1 import node_service_pb2_grpc
from services.inference import errors, servicer_openai
from services.inference.accounting import Ledger
from services.inference.admission import Admission
from services.inference.agent import NodeAgent
from services.inference.anthropic import servicer as servicer_anthropic
from services.inference.benchmark import EngineBenchmark
from services.inference.child import COMMANDS, ChildLoader, EngineChild
from services.inference.commands import Commands
from services.inference.detection import wait_for_engine
from services.inference.embedder import Embedder
from services.inference.engine_watch import EngineWatch
from services.inference.engines import ENGINES
from services.inference.enrolment import enrol
from services.inference.gateway_metadata import GatewayMetadata
from services.inference.http_client import EngineClient
from services.inference.identity import Identity, IdentityServicer
from services.inference.loading import loader_of
from services.inference.ollama import servicer as servicer_ollama
from services.inference.prompt_counter import PromptCounter
from services.inference.relay import Relay
from services.inference.reports import NodeFacts
from services.inference.reranking import Reranker
from services.inference.response_cache.cache import response_cache_of
from services.inference.response_cache.relay import CachingRelay
from services.inference.servicer_openai_more import MoreServicer
from services.inference.servicer_typed import TypedServicer
from services.inference.settings import InferenceSettings
from services.inference.state import EngineState
from services.inference.tokenizing import Tokenizer
from services.kit.audit_inference import InferenceAudit
from services.kit.audit_sender import reporting_as_node
from services.kit.channels import CHANNEL_OPTIONS, open_front_channel
from services.kit.guard import guarded
from services.kit.guardrails.guard import PromptGuard
from services.kit.server import App, Health
from services.kit.usage_spool import open_spool

if TYPE_CHECKING:
    from services.inference.certificate import NodeCertificate

# A front door that vanished without a word is noticed before the node's lease is long over.
_KEEPALIVE_OPTIONS = (("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 3_000))


def make_app(settings: InferenceSettings) -> App:
    """Returns the inference proxy as an app for `kit.server`."""

    @asynccontextmanager
    async def app(server: grpc.aio.Server, health: Health) -> AsyncIterator[Sequence[str]]:
        channel = open_front_channel(
            settings.mesh_address,
            settings.mesh_ca,
            settings.mesh_name,
            (*CHANNEL_OPTIONS, *_KEEPALIVE_OPTIONS),
        )
        credentials = (("authorization", f"Bearer {await _node_key(settings, channel)}"),)
        certificate = _certificate(settings, channel, credentials)
        if certificate is not None:
            await certificate.ensure()
        engine = ENGINES[await _dialect(settings)](settings.engine_options)
        client = EngineClient(
            settings.engine_url,
            idle_timeout_s=settings.engine_idle_timeout_s,
            total_timeout_s=settings.engine_total_timeout_s,
            headers=engine.headers,
        )
        state = EngineState(settings.engine_slots)
        usage = usage_service_pb2_grpc.UsageServiceStub(channel)

        async def send(request: usage_service_pb2.RecordUsageRequest) -> object:
            return await usage.RecordUsage(request, metadata=credentials)

        child = _child(settings, state)
        admission = Admission(
            state,
            engine_slots=settings.engine_slots,
            max_in_flight=settings.max_in_flight,
            max_queued=settings.max_queued,
            max_wait_s=settings.max_queue_wait_s,
        )

        def prices(model: str) -> tuple[float | None, float | None]:
            return settings.prices.get(model, (None, None))

        async def note_probe() -> None:
            admission.resize(watch.load.slots)
            if not state.is_up:
                # Another node may have room.
                admission.refuse_waiting(lambda: errors.unavailable("The node's engine is down."))
            await agent.note_probe()

        watch = EngineWatch(engine, client, state, note_probe)
        await health.set_ready(False)
        async with (
            channel,
            open_spool(settings.state_dir / "usage", send) as spool,
            reporting_as_node(channel, credentials, settings.state_dir) as recorder,
        ):
            ledger = Ledger(spool, settings.node_id, state.answers)
            way = (
                engine,
                client,
                ledger,
                state,
                admission,
                GatewayMetadata(settings.node_id, engine.name, prices),
                InferenceAudit(recorder, settings.node_id),
            )
            cache = response_cache_of(settings, channel, credentials)
            relay = Relay(*way) if cache is None else CachingRelay(cache, *way)
            identity = Identity(settings.node_id)
            guard = PromptGuard()
            loader = ChildLoader(child, state) if child else loader_of(engine.name, client)
            agent = NodeAgent(
                node_service_pb2_grpc.NodeServiceStub(channel),
                credentials,
                facts=NodeFacts(
                    settings.node_id,
                    settings.address,
                    engine.name,
                    settings.labels,
                    settings.tier,
                    settings.prices,
                ),
                state=state,
                health=health,
                identity=identity,
                commands=Commands(loader, EngineBenchmark(relay), watch.refresh),
            )
            identity_service_pb2_grpc.add_IdentityServiceServicer_to_server(
                IdentityServicer(identity), guarded(server)
            )
            reranker = Reranker(relay, engine, client, guard)
            counter = PromptCounter(engine, client, relay, ledger, state)
            tokenizer = Tokenizer(relay, engine, client, guard, ledger, state)
            servicer_openai.add_to_server(
                servicer_openai.OpenAIServicer(relay, guard, settings.keepalive_s),
                MoreServicer(reranker, tokenizer).forms(),
                server,
            )
            servicer_anthropic.add_to_server(
                servicer_anthropic.AnthropicServicer(
                    relay, guard, engine, counter, settings.keepalive_s
                ),
                server,
            )
            servicer_ollama.add_to_server(
                servicer_ollama.OllamaServicer(relay, engine, guard), server
            )
            inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(
                TypedServicer(relay, Embedder(engine, client), reranker, counter, tokenizer, guard),
                guarded(server),
            )
            # A task that fails takes the process down with it: a node that no longer knows its
            # engine is worse than one that starts again.
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(watch.run())
                membership = tasks.create_task(agent.run(watch))
                running = tasks.create_task(child.run()) if child else None
                renewing = tasks.create_task(certificate.keep()) if certificate else None
                yield (
                    "infermesh.inference.v1.OpenAIService",
                    "infermesh.inference.v1.AnthropicService",
                    "infermesh.inference.v1.OllamaService",
                    "infermesh.inference.v1.InferenceService",
                    "infermesh.inference.v1.IdentityService",
                )
                await agent.leave()
                watching.cancel()
                membership.cancel()
                if running:
                    running.cancel()
                if renewing:
                    renewing.cancel()
            client.close()
            guard.close()

    return app


async def _node_key(settings: InferenceSettings, channel: grpc.aio.Channel) -> str:
    token = settings.node_token.get_secret_value()
    if not token:
        return settings.node_key.get_secret_value()
    return await enrol(channel, token, settings.node_id, settings.state_dir / "node.key")


def _certificate(
    settings: InferenceSettings,
    channel: grpc.aio.Channel,
    credentials: tuple[tuple[str, str], ...],
) -> "NodeCertificate | None":
    if not settings.node_certificate or settings.tls_dir is None:
        return None
    # Takes 12 MB, which nodes without TLS save.
    from services.inference.certificate import NodeCertificate

    stub = certificate_service_pb2_grpc.CertificateServiceStub(channel)
    return NodeCertificate(stub, credentials, settings.node_id, settings.tls_dir)


async def _dialect(settings: InferenceSettings) -> str:
    if settings.engine != "auto":
        return settings.engine
    # Dialects that ask for a key take it as OpenAI does.
    key = settings.engine_api_key.get_secret_value()
    headers = {"authorization": f"Bearer {key}"} if key else {}
    client = EngineClient(
        settings.engine_url, idle_timeout_s=settings.engine_idle_timeout_s, headers=headers
    )
    try:
        return await wait_for_engine(client)
    finally:
        client.close()


def _child(settings: InferenceSettings, state: EngineState) -> EngineChild | None:
    if not settings.run_model:
        return None
    return EngineChild(
        COMMANDS[settings.engine],
        settings.run_model,
        urlsplit(settings.engine_url).port or 0,
        more=settings.run_args,
        log_file=settings.state_dir / "engine.log",
        state=state,
    )
