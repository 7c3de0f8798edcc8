"""Several processes that serve one port, for services whose processes need not know of each other.

The process that is started becomes the parent, which serves nothing: it starts as many copies of
itself as are wanted, starts those again that end, and ends them when it is told to end. All bind
the port with `SO_REUSEPORT`, and the kernel gives each new connection to one of them. It shares
out connections, not calls: of Envoy's threads each holds one, so that workers are worth something
where Envoy has several threads, that is on four cores and more.

A service allows it by calling `share_port` before anything else. Workers are to each other what
replicas on other machines are.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from services.kit.processes import tied_to_us

COUNT = "INFERMESH_WORKERS"
_NUMBER = "INFERMESH_WORKER"
_MAX = 64

# Who ended sooner than this after the start is started again only after a while.
_SOON_S = 5.0
_FIRST_PAUSE_S = 0.2
_MAX_PAUSE_S = 5.0
# What `services.kit.settings` ends with: the same settings are as wrong the next time.
_WRONG_SETTINGS = 2


def is_worker() -> bool:
    """Says whether this process shares its port with others."""
    return _NUMBER in os.environ


def own(folder: Path) -> Path:
    """Returns this process's own part of the service's folder: what is locked is not shared.

    The first worker has what the service alone would have, so that nothing is left behind there.
    """
    number = os.environ.get(_NUMBER, "0")
    return folder if number == "0" else folder / f"worker-{number}"


def share_port() -> None:
    """Returns in processes that serve. In the parent of several it ends with them.

    Raises:
        SystemExit: In the parent: status 0 where it was told to end, 2 where the settings are
            wrong.
    """
    text = os.environ.get(COUNT, "1")
    if is_worker() or text == "1":
        return
    if not text.isdecimal() or not 1 <= int(text) <= _MAX:
        print(f"{COUNT}: must be 1 to {_MAX}", file=sys.stderr)
        raise SystemExit(_WRONG_SETTINGS)
    raise SystemExit(Workers(int(text), _start).run())


class Workers:
    """The copies of a process.

    Args:
        count: How many there are.
        start: Starts the one with a number, from 0.
    """

    def __init__(self, count: int, start: Callable[[int], "subprocess.Popen[bytes]"]) -> None:
        self._start = start
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._started_at = dict.fromkeys(range(count), 0.0)
        self._pauses_s = dict.fromkeys(range(count), 0.0)
        self._is_stopping = False

    def run(self) -> int:
        """Keeps them running until a signal says to end; returns the status to end with."""
        woken, wake = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for ending in (signal.SIGTERM, signal.SIGINT):
            signal.signal(ending, self._stop)
        signal.signal(signal.SIGCHLD, _note)
        status: int = 0
        while not self._is_stopping:
            self._start_due()
            for number, process in list(self._running.items()):
                if (code := process.poll()) is not None:
                    del self._running[number]
                    if code == _WRONG_SETTINGS:
                        status, self._is_stopping = int(code), True
                    self._note_end(number, code)
            if not self._is_stopping:
                # Until a signal comes, or somebody is due to be started again.
                select.select([woken], [], [], self._next_due_s())
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 4096)
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in self._running.values():
            process.wait()
        return status

    def _start_due(self) -> None:
        now = time.monotonic()
        for number, started_at in self._started_at.items():
            if number not in self._running and now >= started_at + self._pauses_s[number]:
                self._started_at[number] = now
                self._running[number] = self._start(number)

    def _next_due_s(self) -> float | None:
        due = [
            started_at + self._pauses_s[number]
            for number, started_at in self._started_at.items()
            if number not in self._running
        ]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _note_end(self, number: int, code: int) -> None:
        lived_s = time.monotonic() - self._started_at[number]
        pause_s = self._pauses_s[number]
        self._pauses_s[number] = (
            min(max(2 * pause_s, _FIRST_PAUSE_S), _MAX_PAUSE_S) if lived_s < _SOON_S else 0.0
        )
        if not self._is_stopping:
            print(f"worker {number} ended with status {code}; it is started again", file=sys.stderr)

    def _stop(self, _signal: int, _frame: object) -> None:
        self._is_stopping = True


def _note(_signal: int, _frame: object) -> None:
    """Does nothing: a signal that is handled wakes who waits, one that is ignored does not."""


def _start(number: int) -> "subprocess.Popen[bytes]":
    command = [*tied_to_us(signal.SIGTERM), sys.executable, *sys.orig_argv[1:]]
    return subprocess.Popen(command, env={**os.environ, _NUMBER: str(number)})  # noqa: S603
