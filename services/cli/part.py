"""One process of the mesh: what it is, and how it is started so that it never outlives us."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.kit.processes import tied_to_us

NOBODY = 65534
"""The user and group that a part with `as_user` runs as when we are root."""

MAX_LOG_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True)
class Part:
    """A process to run.

    Attributes:
        argv: The program and its arguments.
        env: The whole environment of the process.
        probe: Says whether the part does its work now. Called only while it starts.
        after: Names of the parts that must have been ready before this one starts.
        stop_signal: Sent to ask it to end.
        stop_s: Seconds after that until it is killed.
        log_file: Gets its standard output and error, appended.
        as_user: Run it as `nobody` when we are root, yet able to reach files in our folders.
        death_signal: What the kernel sends it when we die.
        cwd: The folder that it runs in; None for ours.
        start_limit_s: Seconds that it may take to be ready.
        ports: TCP ports that it listens on, by what they are for.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    probe: Callable[[], Awaitable[bool]]
    log_file: Path
    after: Sequence[str] = ()
    stop_signal: signal.Signals = signal.SIGTERM
    stop_s: float = 3.0
    as_user: bool = False
    death_signal: signal.Signals = signal.SIGKILL
    cwd: Path | None = None
    start_limit_s: float = 30.0
    ports: Mapping[str, int] = field(default_factory=dict)


async def spawn(part: Part) -> asyncio.subprocess.Process:
    """Starts the process in a session of its own, tied to the life of this one.

    Must be called from the main thread: the kernel ties the child to the thread that forks it.

    Raises:
        OSError: The program or the log file cannot be opened.
    """
    if shutil.which(part.argv[0]) is None:
        raise FileNotFoundError(f"there is no program {part.argv[0]}")
    as_user = [*as_nobody()] if part.as_user and os.geteuid() == 0 else []
    argv = [*as_user, *tied_to_us(part.death_signal), *part.argv]
    part.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    rotate(part.log_file)
    with part.log_file.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *argv,
            env=dict(part.env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C in the terminal then reaches only us, and we stop the parts in order.
            start_new_session=True,
            cwd=part.cwd,
        )


def as_nobody() -> list[str]:
    """Returns the command prefix that gives up root but may still walk into root's folders.

    PostgreSQL refuses to run as root, while its binaries and data may lie in folders that only
    root may enter. It asks access(2) whether it may, which looks at capabilities only with
    `no_setuid_fixup`. A change of user drops a tie to the parent, so `tied_to_us` comes after.
    """
    return [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
        "--securebits=+no_setuid_fixup",
    ]


def sweep_group(pid: int) -> None:
    """Kills what the ended process `pid` has left behind in its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def rotate(log_file: Path) -> None:
    """Moves what a log holds out of the way once it is long; the part goes on writing to it.

    Copies and truncates, since the part holds the file open: what it writes in between is lost.
    """
    with contextlib.suppress(FileNotFoundError):
        if log_file.stat().st_size > MAX_LOG_BYTES:
            shutil.copyfile(log_file, log_file.with_suffix(".log.1"))
            os.truncate(log_file, 0)
