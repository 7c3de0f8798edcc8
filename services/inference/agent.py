"""Keeps the node in the mesh: joins, reports, and joins again whenever the stream breaks."""

import asyncio
import logging

import grpc

from infermesh.registry.v1 import node_service_pb2 as pb
from infermesh.registry.v1 import node_service_pb2_grpc
from services.inference.commands import Commands
from services.inference.engine_watch import EngineWatch
from services.inference.identity import Identity
from services.inference.reports import NodeFacts, join_of, node_load, update_of
from services.inference.state import EngineState
from services.kit.server import Health

log = logging.getLogger(__name__)

_JOIN_TIMEOUT_S = 10.0
_WRITE_TIMEOUT_S = 5.0
_FIRST_BACKOFF_S = 0.2
# Well under a lease, so that a mesh that is back has its nodes before they count as gone.
_MAX_BACKOFF_S = 1.0
_REPLACED_BACKOFF_S = 5.0
# What is refused now is refused a moment later too.
_REFUSED_BACKOFF_S = 2.0
_REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)
_GOODBYE_S = 1.0

_Call = grpc.aio.StreamStreamCall[pb.AttachNodeRequest, pb.AttachNodeResponse]


class NodeAgent:
    """Speaks for the node to the registry.

    Args:
        stub: The registry, by way of the mesh's front door.
        credentials: Metadata that lets the node in.
        facts: What the operator says of the node.
        state: What is known of the engine.
        health: The process's health, which is the engine's.
        identity: Shows at the node's address that it is the one that joins.
        commands: What operators have the node do.
    """

    def __init__(
        self,
        stub: "node_service_pb2_grpc.NodeServiceAsyncStub",
        credentials: tuple[tuple[str, str], ...],
        *,
        facts: NodeFacts,
        state: EngineState,
        health: Health,
        identity: Identity,
        commands: Commands,
    ) -> None:
        self._stub = stub
        self._credentials = credentials
        self._facts = facts
        self._state = state
        self._health = health
        self._identity = identity
        self._commands = commands
        self._is_joined = False
        self._is_leaving = False
        self._is_report_due = False
        self._due = asyncio.Event()
        self._left = asyncio.Event()
        self._has_joined = False
        commands.on_progress(self._due.set)

    async def note_probe(self) -> None:
        """Takes in what a probe found: the process's health at once, the next report soon."""
        await self._health.set_ready(self._state.is_up)
        self._is_report_due = True
        self._due.set()

    async def run(self, watch: EngineWatch) -> None:
        """Stays in the mesh until `leave` is called, as draining once the process is to stop."""
        stopping = asyncio.create_task(self._announce_stop())
        backoff_s = _FIRST_BACKOFF_S
        try:
            await watch.described.wait()
            while not self._is_leaving:
                self._has_joined = False
                wait_s = 0.0
                try:
                    await self._attach(watch)
                except grpc.aio.AioRpcError as error:
                    wait_s = _wait_after(error.code())
                    log.warning(
                        "not in the mesh",
                        extra={"code": error.code().name, "error": error.details()},
                    )
                except TimeoutError:
                    log.warning("not in the mesh", extra={"error": "the registry is silent"})
                if self._is_leaving:
                    return
                await asyncio.sleep(wait_s)
                if self._has_joined:
                    backoff_s = _FIRST_BACKOFF_S
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)
        finally:
            stopping.cancel()

    async def _announce_stop(self) -> None:
        await self._health.stopping.wait()
        self._is_report_due = True
        self._due.set()

    async def _attach(self, watch: EngineWatch) -> None:
        """Joins, and reports for as long as the stream lives.

        Raises:
            AioRpcError: The registry refused, or cannot be reached.
            TimeoutError: The registry does not answer.
        """
        generation = watch.generation
        self._identity.expect()
        call: _Call = self._stub.AttachNode(metadata=self._credentials)
        try:
            async with asyncio.timeout(_JOIN_TIMEOUT_S):
                await call.write(pb.AttachNodeRequest(join=join_of(self._facts, self._state)))
                joined = await self._read_joined(call)
            if joined is None:
                await _raise_status(call)
                return
            interval_s = joined.report_interval.ToTimedelta().total_seconds()
            watch.interval_s = min(max(interval_s, 0.1), 60.0)
            log.info("joined the mesh", extra={"report_interval_s": watch.interval_s})
            listener = asyncio.create_task(self._listen(call))
            listener.add_done_callback(lambda _: self._due.set())
            self._is_joined = self._has_joined = True
            try:
                await self._report(call, listener, watch, generation)
            finally:
                self._is_joined = False
                self._commands.cut_off()
                listener.cancel()
        except asyncio.InvalidStateError:
            # What grpc raises when a stream that has ended is written to.
            await _raise_status(call)
        finally:
            call.cancel()

    async def _read_joined(self, call: _Call) -> pb.NodeJoined | None:
        """Answers the challenge; returns None where the stream ends instead."""
        while isinstance(response := await call.read(), pb.AttachNodeResponse):
            if response.HasField("challenge"):
                self._identity.take(response.challenge.nonce)
            elif response.HasField("joined"):
                return response.joined
        return None

    async def _report(
        self, call: _Call, listener: "asyncio.Task[None]", watch: EngineWatch, generation: int
    ) -> None:
        self._is_report_due = True
        self._due.set()
        while True:
            await self._due.wait()
            self._due.clear()
            if listener.done():
                await _raise_status(call)
                return
            if watch.generation != generation:
                generation = watch.generation
                await _write(call, pb.AttachNodeRequest(update=update_of(self._facts, self._state)))
            for progress in self._commands.take_progress():
                await _write(call, pb.AttachNodeRequest(progress=progress))
            if self._is_leaving:
                await call.done_writing()
                await asyncio.wait({listener})
                self._left.set()
                return
            if self._is_report_due:
                self._is_report_due = False
                await _write(call, pb.AttachNodeRequest(report=self._node_report(watch)))

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
            match response.WhichOneof("message"):
                case "drain_changed":
                    # The registry keeps traffic away and knows of it: it is not to be told back.
                    draining = response.drain_changed.draining
                    log.info("drain changed", extra={"draining": draining})
                case "command":
                    self._commands.start(response.command)
                case "cancel_command":
                    self._commands.cancel(response.cancel_command.command_id)

    def _node_report(self, watch: EngineWatch) -> pb.NodeReport:
        return pb.NodeReport(
            engine_up=self._state.is_up,
            draining=self._health.stopping.is_set(),
            load=node_load(watch.load, self._state),
        )


async def _write(call: _Call, message: pb.AttachNodeRequest) -> None:
    async with asyncio.timeout(_WRITE_TIMEOUT_S):
        await call.write(message)


def _wait_after(code: grpc.StatusCode) -> float:
    if code is grpc.StatusCode.ABORTED:
        # Another node has this name: two that take turns quickly would serve nobody.
        return _REPLACED_BACKOFF_S
    return _REFUSED_BACKOFF_S if code in _REFUSALS else 0.0


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
