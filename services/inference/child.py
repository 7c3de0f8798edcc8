"""An engine that the node runs itself: started, watched, started again, and never left behind."""

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from infermesh.registry.v1 import node_service_pb2 as pb
from services.inference import errors
from services.inference.loading import OnModel
from services.inference.state import EngineState
from services.kit.processes import tied_to_us

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 30.0
_GOOD_RUN_S = 60.0
_STOP_S = 10.0
_LOAD_LIMIT_S = 1800.0
_POLL_S = 0.25
_LOOKS = 3
_MAX_STARTS = 3
_MAX_LOG_BYTES = 10 * 1024 * 1024

Command = Callable[[str, str, int, Sequence[str]], list[str]]
"""Returns the program and its arguments for a model, its name, a port, and further arguments.

The name is empty where what the model is, a file or a repository, says what it is called.
"""


def _llamacpp(model: str, name: str, port: int, more: Sequence[str]) -> list[str]:
    # The name is for callers, who could not write a blank or a slash too many.
    stem = re.sub(r"[^A-Za-z0-9._+-]+", "-", Path(model).stem).strip("-._+")
    alias = name or stem or "model"
    base = [sys.executable, "-m", "services.inference.llamacpp_server", "--model", model]
    return [*base, "--port", str(port), "--alias", alias, *more]


def _vllm(model: str, name: str, port: int, more: Sequence[str]) -> list[str]:
    named = ["--served-model-name", name] if name else []
    return ["vllm", "serve", model, "--host", "127.0.0.1", "--port", str(port), *named, *more]


def _sim(model: str, name: str, port: int, more: Sequence[str]) -> list[str]:
    base = [sys.executable, "-m", "services.inference.simulator", "--model", model]
    named = ["--model", name] if name else []
    return [*base, "--port", str(port), *named, *more]


COMMANDS: Mapping[str, Command] = {"llamacpp": _llamacpp, "sim": _sim, "vllm": _vllm}
"""How each engine that a node can run itself is started, by its dialect."""


class EngineChild:
    """Runs one engine on loopback.

    Args:
        command: How it is started.
        model: What it serves: a file, or what the engine takes for a name.
        port: Where it listens.
        more: Further arguments of its program.
        log_file: Gets what it writes; shortened at each start once it is over 10 MiB.
        state: Where its starts are counted.
    """

    def __init__(
        self,
        command: Command,
        model: str,
        port: int,
        *,
        more: Sequence[str],
        log_file: Path,
        state: EngineState,
    ) -> None:
        self._command = command
        self._model: str | None = model
        self._name = ""
        self._port = port
        self._more = more
        self._log_file = log_file
        self._state = state
        self._process: asyncio.subprocess.Process | None = None
        self._changed = asyncio.Event()
        self._is_changing = False

    async def run(self) -> None:
        """Keeps the engine running until this is cancelled, which stops it.

        Raises:
            FileNotFoundError: There is no such program.
        """
        backoff_s = _FIRST_BACKOFF_S
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._changed.clear()
                if self._model is None:
                    await self._changed.wait()
                    continue
                started = loop.time()
                code = await self._run_once(self._model, self._name)
                if self._is_changing:
                    self._is_changing = False
                    backoff_s = _FIRST_BACKOFF_S
                    continue
                if loop.time() - started > _GOOD_RUN_S:
                    backoff_s = _FIRST_BACKOFF_S
                log.warning("the engine died", extra={"exit_status": code, "again_in_s": backoff_s})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(backoff_s):
                        await self._changed.wait()
                is_new = self._changed.is_set()
                backoff_s = _FIRST_BACKOFF_S if is_new else min(backoff_s * 2, _MAX_BACKOFF_S)
        finally:
            await self._stop()

    @property
    def serving(self) -> tuple[str | None, str]:
        """The model that it serves, or is to, None while it is stopped; and the model's name."""
        return self._model, self._name

    async def change(self, model: str | None, name: str = "") -> None:
        """Stops the engine and has it started with another model, or with none at all.

        Args:
            model: What it serves.
            name: What callers name it; empty where the model says it.
        """
        self._model, self._name = model, name
        self._is_changing = self._process is not None
        self._changed.set()
        await self._stop()
        self._state.set_up(False)

    async def _run_once(self, model: str, name: str) -> int:
        argv = self._command(model, name, self._port, self._more)
        if shutil.which(argv[0]) is None:
            raise FileNotFoundError(f"there is no program {argv[0]}")
        self._state.engine_generation += 1
        with _opened_log(self._log_file) as output:
            process = await asyncio.create_subprocess_exec(
                *tied_to_us(signal.SIGKILL),
                *argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(),
                # Ctrl-C in a terminal reaches the node alone, which lets streams finish first.
                start_new_session=True,
            )
        self._process = process
        log.info("the engine starts", extra={"model": model, "pid": process.pid})
        try:
            return await process.wait()
        finally:
            if process.returncode is not None:
                self._process = None
                _sweep(process.pid)

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            log.warning("the engine does not stop; it is killed")
        _sweep(process.pid)
        await process.wait()
        self._process = None


class ChildLoader:
    """Loads models into an engine that the node runs itself, one at a time, by a new start.

    Args:
        child: The engine.
        state: What is known of it.
    """

    def __init__(self, child: EngineChild, state: EngineState) -> None:
        self._child = child
        self._state = state

    async def load(self, model: str, source: str, on_progress: OnModel) -> None:
        """Starts the engine anew with the model and waits until it serves, 30 minutes at most.

        Where it does not come up, or whoever asked hangs up, it is started with what it had before.
        """
        on_progress(pb.ModelProgress(status="stopping the engine"))
        generation, before = self._state.engine_generation, self._child.serving
        is_loaded = False
        try:
            await self._child.change(source or model, model if source else "")
            on_progress(pb.ModelProgress(status="starting the engine"))
            async with asyncio.timeout(_LOAD_LIMIT_S):
                await self._until_up(generation)
            is_loaded = True
        except TimeoutError:
            raise errors.failed("The engine did not come up with the model.") from None
        finally:
            if not is_loaded:
                await self._child.change(*before)

    async def unload(self, model: str, on_progress: OnModel) -> None:
        """Stops the engine; the node stays in the mesh, with its engine down."""
        if model not in self._state.models:
            raise errors.model_not_found(model)
        on_progress(pb.ModelProgress(status="stopping the engine"))
        await self._child.change(None)

    async def _until_up(self, generation: int) -> None:
        # A probe of the old engine may still be on its way, and say at most once that it is up.
        looks = 0
        while looks < _LOOKS:
            await asyncio.sleep(_POLL_S)
            starts = self._state.engine_generation - generation
            looks = looks + 1 if self._state.is_up and starts else 0
            if starts > _MAX_STARTS:
                raise errors.failed(
                    "The engine dies at its start with the model; its log on the node says why."
                )


def _opened_log(path: Path) -> IO[bytes]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _MAX_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
    return os.fdopen(os.open(path, flags, 0o600), "ab")


def _environment() -> dict[str, str]:
    """Returns ours less the settings of the node, its keys among them."""
    return {k: v for k, v in os.environ.items() if not k.startswith("INFERMESH_")}


def _sweep(pid: int) -> None:
    """Kills what the engine has left behind in its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
