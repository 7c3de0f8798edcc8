"""What the processes of a target use: CPU and memory, with all that they have started."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import psutil

from services.cli.keeper import PartStatus

_SAMPLE_S = 2.0


class Processes:
    """The processes of the targets; one that dies is found again once it is back.

    Args:
        states: Says of each part how it is now.
    """

    def __init__(self, states: Callable[[], Mapping[str, PartStatus]]) -> None:
        self._states = states
        self._roots: dict[str, psutil.Process] = {}
        self.refresh()

    def refresh(self) -> None:
        """Looks which processes there are now."""
        self._roots = {}
        for name, status in self._states().items():
            with contextlib.suppress(psutil.NoSuchProcess):
                if status.pid is not None:
                    self._roots[name] = psutil.Process(status.pid)

    def pids(self, name: str) -> list[int]:
        """Returns the processes of a part, the one that was started first."""
        return [process.pid for process in self._tree(name)]

    def lives(self, names: Iterable[str]) -> tuple[int | None, ...]:
        """Returns the parts' process ids, None for one that is down; another is another life."""
        states = self._states()
        return tuple(states[name].pid for name in names)

    def cpu_s(self, names: Iterable[str]) -> dict[str, float]:
        """Returns the CPU seconds that each part has used so far."""
        return {name: sum(_cpu(each) for each in self._tree(name)) for name in names}

    def memory_mib(self, names: Iterable[str]) -> dict[str, float]:
        """Returns the memory of each part now; pages that processes share count once."""
        return _memory({name: self._tree(name) for name in names})

    @contextlib.contextmanager
    def watched(self, names: Sequence[str]) -> Iterator[dict[str, float]]:
        """Yields what each part holds at most until the end of the context, in MiB.

        It is looked at every two seconds and at the end, from a thread: what loads the parts
        meanwhile is a process of its own.
        """
        most: dict[str, float] = {}
        ended = threading.Event()
        trees = {name: self._tree(name) for name in names}

        def look() -> None:
            for name, mib in _memory(trees).items():
                most[name] = max(mib, most.get(name, 0.0))

        def watch() -> None:
            while not ended.wait(_SAMPLE_S):
                look()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield most
        finally:
            ended.set()
            thread.join()
            trees = {name: self._tree(name) for name in names}
            look()

    def _tree(self, name: str) -> list[psutil.Process]:
        root = self._roots.get(name)
        if root is None:
            return []
        try:
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _memory(trees: Mapping[str, Sequence[psutil.Process]]) -> dict[str, float]:
    return {name: sum(map(_pss, tree)) / 2**20 for name, tree in trees.items()}


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0
