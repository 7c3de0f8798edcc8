"""Does what operators ask of the node, and says how far it is."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from infermesh.errors.v1 import errors_pb2
from infermesh.registry.v1 import node_service_pb2 as pb
from services.inference.http_client import EngineConnectionError, EngineTimeoutError
from services.inference.loading import ModelLoader
from services.kit.errors import MeshError

log = logging.getLogger(__name__)

_MAX_COMMANDS = 16

OnModel = Callable[[pb.ModelProgress], None]
OnBenchmark = Callable[[pb.BenchmarkNodeResponse], None]


class Benchmark(Protocol):
    """Puts load on the engine."""

    async def run(
        self, request: pb.BenchmarkNodeRequest, on_progress: OnBenchmark
    ) -> pb.BenchmarkNodeResponse:
        """Runs a benchmark and returns the last message of it, with what it found.

        Raises:
            MeshError: It cannot be run.
        """


class Commands:
    """Runs commands, each in a task of its own.

    Of what a command says only the latest is kept until the agent takes it: a mesh that reads
    slowly gets fewer messages.

    Args:
        loader: Loads and unloads models.
        benchmark: Puts load on the engine.
        refresh: Has the engine asked at once what it serves.
    """

    def __init__(
        self, loader: ModelLoader, benchmark: Benchmark, refresh: Callable[[], Awaitable[None]]
    ) -> None:
        self._loader = loader
        self._benchmark = benchmark
        self._refresh = refresh
        self._running: dict[str, asyncio.Task[None]] = {}
        self._progress: dict[str, pb.CommandProgress] = {}
        self._wake: Callable[[], None] = lambda: None

    def on_progress(self, wake: Callable[[], None]) -> None:
        """Has `wake` called whenever there is progress to take."""
        self._wake = wake

    def take_progress(self) -> list[pb.CommandProgress]:
        """Returns what there is to say, one message for each command."""
        taken = list(self._progress.values())
        self._progress.clear()
        return taken

    def start(self, command: pb.NodeCommand) -> None:
        """Starts a command; more than 16 at a time are refused."""
        command_id = command.command_id
        if len(self._running) >= _MAX_COMMANDS:
            self._fail(
                command_id,
                MeshError(errors_pb2.ERROR_REASON_OVERLOADED, "The node has too many commands."),
            )
            return
        log.info("command started", extra={"command": command.WhichOneof("command")})
        task = asyncio.create_task(self._run(command))
        self._running[command_id] = task
        task.add_done_callback(lambda _: self._running.pop(command_id, None))

    def cancel(self, command_id: str) -> None:
        """Stops a command; passes over one that is over."""
        task = self._running.get(command_id)
        if task is not None:
            task.cancel()
            log.info("command cancelled")

    def cut_off(self) -> None:
        """Stops all commands: nobody hears of them any more."""
        for task in self._running.values():
            task.cancel()
        self._progress.clear()

    async def _run(self, command: pb.NodeCommand) -> None:
        command_id = command.command_id

        def on_model(progress: pb.ModelProgress) -> None:
            self._say(pb.CommandProgress(command_id=command_id, model=progress))

        def on_benchmark(progress: pb.BenchmarkNodeResponse) -> None:
            self._say(pb.CommandProgress(command_id=command_id, benchmark=progress))

        try:
            match command.WhichOneof("command"):
                case "load_model":
                    request = command.load_model
                    await self._loader.load(request.model, request.source, on_model)
                    await self._finish_model(on_model)
                case "unload_model":
                    await self._loader.unload(command.unload_model.model, on_model)
                    await self._finish_model(on_model)
                case "benchmark":
                    on_benchmark(await self._benchmark.run(command.benchmark, on_benchmark))
                case _:
                    raise MeshError(
                        errors_pb2.ERROR_REASON_UNSUPPORTED, "The node does not know this command."
                    )
        except MeshError as error:
            self._fail(command_id, error)
        except (EngineConnectionError, EngineTimeoutError) as error:
            self._fail(
                command_id,
                MeshError(errors_pb2.ERROR_REASON_ENGINE_UNAVAILABLE, f"The engine: {error}"),
            )
        except Exception:
            log.exception("a command failed")
            self._fail(
                command_id,
                MeshError(errors_pb2.ERROR_REASON_INTERNAL, "The node failed to do the command."),
            )

    async def _finish_model(self, on_model: OnModel) -> None:
        # The mesh knows what the engine serves before it is told that it is done.
        await self._refresh()
        on_model(pb.ModelProgress(status="done", done=True))

    def _fail(self, command_id: str, error: MeshError) -> None:
        failure = pb.CommandFailure(
            reason=error.reason, message=error.message, param=error.param or ""
        )
        self._say(pb.CommandProgress(command_id=command_id, failure=failure))

    def _say(self, progress: pb.CommandProgress) -> None:
        self._progress[progress.command_id] = progress
        self._wake()
