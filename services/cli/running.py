"""Runs the embedded mesh in the terminal: starts it, shows it, and stops it."""

import asyncio
import signal
from collections import deque
from pathlib import Path

import grpc
from rich.console import Console

from infermesh.registry.v1 import (
    node_service_pb2,
    node_service_pb2_grpc,
    resources_pb2,
)
from services.cli import ports, stack
from services.cli.certs import CertsError
from services.cli.keeper import PartState, PartStatus
from services.cli.options import fail
from services.cli.part import Part
from services.cli.screen import screen
from services.cli.stack_tls import StackTls
from services.cli.supervisor import StartError, Supervisor
from services.kit.channels import open_channel
from services.kit.tls import service

JOIN_LIMIT_S = 20.0


def run(options: stack.Options, shown_state_dir: Path) -> None:
    """Runs the mesh until SIGINT or SIGTERM; ends the command with status 1 if it does not start.

    Args:
        shown_state_dir: The state folder as the person knows it.
    """
    made = stack.Stack(options)
    try:
        parts = made.parts()
    except CertsError as error:
        fail(str(error))
    taken = ports.conflicts(parts, options.host, options.port)
    if taken:
        fail("\n".join(f"Cannot start: {conflict}." for conflict in taken))
    if problem := asyncio.run(_Run(options, parts, made.tls, shown_state_dir).run()):
        fail(problem)


class _Run:
    def __init__(
        self, options: stack.Options, parts: list[Part], tls: StackTls, shown_state_dir: Path
    ) -> None:
        self._options = options
        self._tls = tls
        self._shown = shown_state_dir
        self._parts = {part.name: part for part in parts}
        self._supervisor = Supervisor(parts, self._changed)
        self._console = Console(highlight=False)
        self._started = False
        self._down: set[str] = set()
        self._spinner = self._console.status("Starting …")

    async def run(self) -> str:
        """Returns what went wrong; empty after a stop that was asked for."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)
        stopped = asyncio.create_task(stop.wait())
        began = loop.time()
        try:
            with self._spinner:
                starting = asyncio.create_task(self._start())
                await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not starting.done():
                    starting.cancel()
                    return ""
                try:
                    warning = starting.result()
                except StartError as error:
                    return f"{error}{self._tail(error)}"
            self._started = True
            self._console.print(
                screen(
                    self._options,
                    self._shown,
                    self._supervisor.states(),
                    loop.time() - began,
                    self._tls.ca_file,
                ),
                soft_wrap=True,
            )
            if warning:
                self._console.print(warning, style="yellow", soft_wrap=True)
            running = asyncio.create_task(self._supervisor.run_forever())
            renewing = asyncio.create_task(self._tls.keep())
            await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
            renewing.cancel()
            if stopped.done():
                running.cancel()
                return ""
            return _why(running)
        finally:
            self._started = False
            self._console.print("Stopping …")
            await self._supervisor.stop()
            self._console.print("Stopped.")

    async def _start(self) -> str:
        """Returns a warning about what is not there yet; empty when all is."""
        await self._supervisor.start()
        wanted = {name for name in self._parts if name.startswith("node-")}
        missing = wanted
        deadline = asyncio.get_running_loop().time() + JOIN_LIMIT_S
        while missing and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.1)
            missing = wanted - await self._ready_nodes()
        names = ", ".join(sorted(missing))
        return f"These nodes have not joined yet: {names}" if missing else ""

    async def _ready_nodes(self) -> set[str]:
        # Not by the front door, whose certificate may be for another name than this machine's.
        address, peer = self._options.registry_address, service("registry")
        async with open_channel(address, peer, self._tls.own_folder) as channel:
            stub = node_service_pb2_grpc.NodeServiceStub(channel)
            try:
                reply = await stub.ListNodes(node_service_pb2.ListNodesRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                return set()  # not yet; the caller asks again until its time is up
        return {n.node_id for n in reply.nodes if n.state == resources_pb2.NODE_STATE_READY}

    def _changed(self, status: PartStatus) -> None:
        if not self._started:
            states = self._supervisor.states().values()
            ready = sum(each.state is PartState.READY for each in states)
            self._spinner.update(f"Starting … {ready} of {len(states)} parts are ready")
        elif status.state is PartState.BACKOFF and status.name not in self._down:
            self._down.add(status.name)
            self._console.print(f"{status.name} died ({status.detail}); starting it again")
        elif status.state is PartState.READY:
            self._down.discard(status.name)
            self._console.print(f"{status.name} is back (start {status.restarts + 1})")

    def _tail(self, error: StartError) -> str:
        """Returns the last lines of the log of the part that did not start."""
        try:
            with self._parts[error.part].log_file.open(errors="replace") as log:
                lines = deque(log, 8)
        except FileNotFoundError:
            return ""
        return "".join(f"\n    {line.rstrip()}" for line in lines)


def _why(ended: "asyncio.Task[None]") -> str:
    """Returns why the parts are not kept any more."""
    error = ended.exception()
    if error is None:
        return "All parts have ended."
    return f"The mesh cannot be kept running: {type(error).__name__}: {error}"
