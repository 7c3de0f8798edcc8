"""Puts the inference proxy together."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc

from infermesh.inference.v1 import inference_service_pb2_grpc
from infermesh.metrics.v1 import usage_service_pb2, usage_service_pb2_grpc
from infermesh.registry.v1 import node_service_pb2_grpc
from services.inference import servicer_openai
from services.inference.accounting import Ledger
from services.inference.agent import NodeAgent
from services.inference.embedder import Embedder
from services.inference.engine_watch import EngineWatch
from services.inference.engines import ENGINES
from services.inference.http_client import EngineClient
from services.inference.relay import Relay
from services.inference.servicer_typed import TypedServicer
from services.inference.settings import InferenceSettings
from services.inference.state import EngineState
from services.kit.guard import guarded
from services.kit.server import CHANNEL_OPTIONS, App, Health
from services.kit.usage_spool import open_spool

# A front door that vanished without a word is noticed before the node's lease is long over.
_KEEPALIVE_OPTIONS = (("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 3_000))


def make_app(settings: InferenceSettings) -> App:
    """Returns the inference proxy as an app for `kit.server`."""

    @asynccontextmanager
    async def app(server: grpc.aio.Server, health: Health) -> AsyncIterator[Sequence[str]]:
        engine = ENGINES[settings.engine]()
        client = EngineClient(settings.engine_url, idle_timeout_s=settings.engine_idle_timeout_s)
        state = EngineState()
        credentials = (("authorization", f"Bearer {settings.node_key.get_secret_value()}"),)
        channel = grpc.aio.insecure_channel(
            settings.mesh_address, options=(*CHANNEL_OPTIONS, *_KEEPALIVE_OPTIONS)
        )
        usage = usage_service_pb2_grpc.UsageServiceStub(channel)

        async def send(request: usage_service_pb2.RecordUsageRequest) -> object:
            return await usage.RecordUsage(request, metadata=credentials)

        agent = NodeAgent(
            node_service_pb2_grpc.NodeServiceStub(channel),
            credentials,
            node_id=settings.node_id,
            address=settings.address,
            dialect=engine.name,
            state=state,
            health=health,
        )
        watch = EngineWatch(engine, client, state, agent.note_probe)
        await health.set_ready(False)
        async with channel, open_spool(settings.state_dir / "usage", send) as spool:
            relay = Relay(
                engine,
                client,
                Ledger(spool, settings.node_id),
                state,
                max_in_flight=settings.max_in_flight,
            )
            servicer_openai.add_to_server(servicer_openai.OpenAIServicer(relay), server)
            inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(
                TypedServicer(relay, Embedder(engine, client)), guarded(server)
            )
            # A task that fails takes the process down with it: a node that no longer knows its
            # engine is worse than one that starts again.
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(watch.run())
                membership = tasks.create_task(agent.run(watch))
                yield (
                    "infermesh.inference.v1.OpenAIService",
                    "infermesh.inference.v1.InferenceService",
                )
                await agent.leave()
                watching.cancel()
                membership.cancel()
            client.close()

    return app
