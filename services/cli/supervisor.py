"""Runs the parts of a mesh on one machine: in order, watched, brought back, and never orphaned.

A part starts when the parts named in its `after` are ready. When it dies it alone is started
again, after a growing delay. All parts die with this process, even when it is killed with -9.
"""

import asyncio
import time
from collections.abc import Sequence

from services.cli.keeper import Keeper, OnChange, PartState, PartStatus
from services.cli.part import Part, rotate

ROTATE_INTERVAL_S = 15.0


class StartError(Exception):
    """A part did not come up at all.

    Attributes:
        part: Its name.
    """

    def __init__(self, part: str, message: str) -> None:
        super().__init__(message)
        self.part = part


class Supervisor:
    """Runs a set of parts.

    Args:
        parts: The parts. The names in their `after` are names of others among them.
        on_change: Called with each part's status whenever its state changes.
    """

    def __init__(self, parts: Sequence[Part], on_change: OnChange | None = None) -> None:
        self._keepers: dict[str, Keeper] = {}
        report = on_change or (lambda status: None)
        for level in _levels(parts):
            for part in level:
                after = [self._keepers[name] for name in part.after]
                self._keepers[part.name] = Keeper(part, after, report)
        self._waves = [[self._keepers[p.name] for p in level] for level in _levels(parts)][::-1]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Starts the parts and returns when all are ready.

        Raises:
            StartError: A part did not come up; the others keep running until `stop`.
        """
        self._tasks = [
            asyncio.create_task(keeper.run(), name=name) for name, keeper in self._keepers.items()
        ]
        waits = {asyncio.ensure_future(r.settled.wait()) for r in self._keepers.values()}
        try:
            while waits:
                _, waits = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for keeper in self._keepers.values():
                    if keeper.status.state is PartState.FAILED:
                        raise StartError(keeper.part.name, _failure(keeper))
                for task in self._tasks:
                    if task.done():
                        task.result()
        finally:
            for wait in waits:
                wait.cancel()

    def state(self, name: str) -> PartStatus:
        """Returns one part's status.

        Raises:
            KeyError: There is no such part.
        """
        return self._keepers[name].status

    def states(self) -> dict[str, PartStatus]:
        """Returns every part's status by name, those that others wait for first."""
        return {name: keeper.status for name, keeper in self._keepers.items()}

    async def run_forever(self) -> None:
        """Returns when all parts have ended for good, which without `stop` does not happen.

        Meanwhile it keeps their logs short.

        Raises:
            Exception: What a keeper failed with: its part is not brought back any more.
        """
        left = set(self._tasks)
        while left:
            done, left = await asyncio.wait(
                left, timeout=ROTATE_INTERVAL_S, return_when=asyncio.FIRST_EXCEPTION
            )
            for task in done:
                task.result()
            for keeper in self._keepers.values():
                rotate(keeper.part.log_file)

    async def stop(self, *, limit_s: float = 4.0, wave_s: float = 0.7) -> None:
        """Ends all parts, those first on which nothing waits, and returns when all are gone.

        Args:
            limit_s: After this long whatever still runs is killed.
            wave_s: How long the next parts wait for the ones before them at most.
        """
        started = time.monotonic()
        running = {task.get_name(): task for task in self._tasks if not task.done()}
        kills = []
        loop = asyncio.get_running_loop()
        for wave in self._waves:
            tasks = set()
            for keeper in wave:
                keeper.stop()
                left_s = started + limit_s - time.monotonic()
                kills.append(loop.call_later(min(keeper.part.stop_s, max(left_s, 0)), keeper.kill))
                if keeper.part.name in running:
                    tasks.add(running[keeper.part.name])
            if tasks:
                await asyncio.wait(tasks, timeout=wave_s)
        if running:
            await asyncio.wait(running.values())
        for kill in kills:
            kill.cancel()


def _levels(parts: Sequence[Part]) -> list[list[Part]]:
    """Returns the parts in groups, each of which waits only for groups before it.

    Raises:
        ValueError: A part waits for itself, or for one that does not exist.
    """
    placed: set[str] = set()
    left: list[Part] = list(parts)
    levels: list[list[Part]] = []
    while left:
        level = [part for part in left if placed.issuperset(part.after)]
        if not level:
            names = ", ".join(part.name for part in left)
            raise ValueError(f"these parts wait for each other or for unknown ones: {names}")
        levels.append(level)
        placed.update(part.name for part in level)
        left = [part for part in left if part.name not in placed]
    return levels


def _failure(keeper: Keeper) -> str:
    part, status = keeper.part, keeper.status
    text = f"{part.name} did not start: {status.detail or 'it ended'}"
    return f"{text}. Its log: {part.log_file}"
