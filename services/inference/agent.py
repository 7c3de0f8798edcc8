"""Keeps the node in the mesh: joins, reports, and joins again whenever the stream breaks."""

import asyncio
import logging

import grpc

from infermesh.registry.v1 import node_service_pb2 as pb
from infermesh.registry.v1 import node_service_pb2_grpc, resources_pb2
from services.inference.engine_watch import EngineWatch
from services.inference.engines.dialect import EngineModel, Load
from services.inference.state import EngineState
from services.kit.server import Health

log = logging.getLogger(__name__)

_JOIN_TIMEOUT_S = 10.0
_WRITE_TIMEOUT_S = 5.0
_FIRST_BACKOFF_S = 0.2
# Well under a lease, so that a mesh that is back has its nodes before they count as gone.
_MAX_BACKOFF_S = 1.0
_REPLACED_BACKOFF_S = 5.0
_GOODBYE_S = 1.0

_Call = grpc.aio.StreamStreamCall[pb.AttachNodeRequest, pb.AttachNodeResponse]


class NodeAgent:
    """Speaks for the node to the registry.

    Args:
        stub: The registry, by way of the mesh's front door.
        credentials: Metadata that lets the node in.
        node_id: The node's name.
        address: Where Envoy reaches it.
        dialect: The engine's dialect.
        state: What is known of the engine.
        health: The process's health, which is the engine's.
    """

    def __init__(
        self,
        stub: "node_service_pb2_grpc.NodeServiceAsyncStub",
        credentials: tuple[tuple[str, str], ...],
        *,
        node_id: str,
        address: str,
        dialect: str,
        state: EngineState,
        health: Health,
    ) -> None:
        self._stub = stub
        self._credentials = credentials
        self._node_id = node_id
        self._address = address
        self._dialect = dialect
        self._state = state
        self._health = health
        self._is_drained = False
        self._is_joined = False
        self._is_leaving = False
        self._due = asyncio.Event()
        self._left = asyncio.Event()
        self._has_joined = False

    async def note_probe(self) -> None:
        """Takes in what a probe found: the process's health at once, the next report soon."""
        await self._health.set_ready(self._state.is_up)
        self._due.set()

    async def run(self, watch: EngineWatch) -> None:
        """Stays in the mesh until `leave` is called, as draining once the process is to stop."""
        stopping = asyncio.create_task(self._announce_stop())
        backoff_s = _FIRST_BACKOFF_S
        try:
            await watch.described.wait()
            while not self._is_leaving:
                self._has_joined = is_replaced = False
                try:
                    await self._attach(watch)
                except grpc.aio.AioRpcError as error:
                    is_replaced = error.code() is grpc.StatusCode.ABORTED
                    log.warning(
                        "not in the mesh",
                        extra={"code": error.code().name, "error": error.details()},
                    )
                except TimeoutError:
                    log.warning("not in the mesh", extra={"error": "the registry is silent"})
                if self._is_leaving:
                    return
                if is_replaced:
                    # Another node has this name: two that take turns quickly would serve nobody.
                    await asyncio.sleep(_REPLACED_BACKOFF_S)
                elif self._has_joined:
                    backoff_s = _FIRST_BACKOFF_S
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)
        finally:
            stopping.cancel()

    async def _announce_stop(self) -> None:
        await self._health.stopping.wait()
        self._due.set()

    async def _attach(self, watch: EngineWatch) -> None:
        """Joins, and reports for as long as the stream lives.

        Raises:
            AioRpcError: The registry refused, or cannot be reached.
            TimeoutError: The registry does not answer.
        """
        self._is_drained = False
        generation = watch.generation
        call: _Call = self._stub.AttachNode(metadata=self._credentials)
        try:
            async with asyncio.timeout(_JOIN_TIMEOUT_S):
                await call.write(pb.AttachNodeRequest(join=self._join()))
                joined = await call.read()
            if not isinstance(joined, pb.AttachNodeResponse):
                await _raise_status(call)
                return
            interval_s = joined.joined.report_interval.ToTimedelta().total_seconds()
            watch.interval_s = min(max(interval_s, 0.1), 60.0)
            log.info("joined the mesh", extra={"report_interval_s": watch.interval_s})
            listener = asyncio.create_task(self._listen(call))
            listener.add_done_callback(lambda _: self._due.set())
            self._is_joined = self._has_joined = True
            try:
                await self._report(call, listener, watch, generation)
            finally:
                self._is_joined = False
                listener.cancel()
        except asyncio.InvalidStateError:
            # What grpc raises when a stream that has ended is written to.
            await _raise_status(call)
        finally:
            call.cancel()

    async def _report(
        self, call: _Call, listener: "asyncio.Task[None]", watch: EngineWatch, generation: int
    ) -> None:
        self._due.set()
        while True:
            await self._due.wait()
            self._due.clear()
            if listener.done():
                await _raise_status(call)
                return
            if watch.generation != generation:
                log.info("joining again: the engine serves something else")
                return
            if self._is_leaving:
                await call.done_writing()
                await asyncio.wait({listener})
                self._left.set()
                return
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                await call.write(pb.AttachNodeRequest(report=self._node_report(watch.load)))

    async def leave(self) -> None:
        """Leaves the mesh in order, where the node is in it; takes at most 1 s."""
        self._is_leaving = True
        self._due.set()
        if not self._is_joined:
            return
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self._left.wait()
        except TimeoutError:
            log.warning("the registry did not say goodbye")

    async def _listen(self, call: _Call) -> None:
        while isinstance(response := await call.read(), pb.AttachNodeResponse):
            if response.HasField("drain_changed"):
                self._is_drained = response.drain_changed.draining
                log.info("drain changed", extra={"draining": self._is_drained})
                self._due.set()

    def _join(self) -> pb.JoinNode:
        return pb.JoinNode(
            node_id=self._node_id,
            address=self._address,
            engine=self._dialect,
            engine_version=self._state.version,
            models=[served_model(model) for model in self._state.models.values()],
        )

    def _node_report(self, load: Load) -> pb.NodeReport:
        return pb.NodeReport(
            engine_up=self._state.is_up,
            draining=self._is_drained or self._health.stopping.is_set(),
            load=node_load(load, self._state.in_flight),
        )


def served_model(model: EngineModel) -> resources_pb2.ServedModel:
    """Returns a model as the registry knows it."""
    capabilities = []
    if model.can_chat:
        capabilities.append(resources_pb2.CAPABILITY_CHAT)
    if model.can_embed:
        capabilities.append(resources_pb2.CAPABILITY_EMBEDDINGS)
    return resources_pb2.ServedModel(
        name=model.name, capabilities=capabilities, context_length=model.context_length
    )


def node_load(load: Load, in_flight: int) -> resources_pb2.NodeLoad:
    """Returns the load; the proxy's own count stands in where the engine does not say."""
    report = resources_pb2.NodeLoad(running=in_flight if load.running is None else load.running)
    if load.queued is not None:
        report.queued = load.queued
    if load.kv_use is not None:
        report.kv_use = load.kv_use
    if load.slots is not None:
        report.slots = load.slots
    return report


async def _raise_status(call: _Call) -> None:
    """Raises the error that a call has ended with; returns where it ended well."""
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            code,
            await call.initial_metadata(),
            await call.trailing_metadata(),
            await call.details(),
        )
