"""Measures the mesh beside its peers, in one run: `make bench`.

Two simulated engines (services/inference/simulator) answer all of them. Every workload goes to
every target in every round, one after the other, all on this one machine; figures are medians over
the rounds. The mesh does all that it does in production: keys, limits, routing and accounting are
on. Load that asks for as much as possible comes from wrk (Debian package `wrk`); streams whose
chunks are timed are read by `bench_streams.py`. What is measured is written after every round, and
a target that dies costs its own figures only.
"""

import argparse
import asyncio
import dataclasses
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import bench_figures as report
from bench_load import LOADS, PACED, paced, wrk
from bench_mesh import ALONE, ENGINES, OWN, until_back, until_quiet
from bench_mesh import Started as _Started
from bench_processes import Processes
from bench_targets import Target

from services.cli.supervisor import StartError

_ENGINE = ("--decode-rate", "20", "--decode-slowdown", "0", "--slots", "1024")
_ENGINE += ("--chunk-interval-s", "0", "--stamped")
_SLOTS = {"INFERMESH_ENGINE_SLOTS": "1024"}


@dataclasses.dataclass
class Bench:
    """One run.

    Attributes:
        rounds: How often everything is measured, a short first round to warm up not counted.
        seconds: How long a load lasts.
        peers: Where the peers are; None to measure without them.
        only: Workloads to run; empty for all.
        output: Gets what is measured, after each round.
        taken: What is measured so far.
    """

    rounds: int
    seconds: int
    peers: Path | None
    only: tuple[str, ...]
    output: Path

    def __post_init__(self) -> None:
        """Begins with nothing measured."""
        self.taken = report.Run(
            machine={
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "load before": round(os.getloadavg()[0], 2),
                "day": time.strftime("%Y-%m-%d"),
                "rounds": self.rounds,
                "seconds": self.seconds,
            }
        )

    async def run(self) -> None:
        """Measures everything."""
        loads = [name for name in LOADS if self._wants(name)]
        if loads:
            await self._half(loads, (), {}, self._load)
        streams = [name for name in PACED if self._wants(name)]
        if streams:
            await self._half(streams, _ENGINE, _SLOTS, self._pace)

    def _wants(self, workload: str) -> bool:
        return not self.only or any(part in workload for part in self.only)

    async def _half(
        self,
        workloads: Sequence[str],
        engine: Sequence[str],
        env: Mapping[str, str],
        ask: Callable[[str, Target, bool], Awaitable[Mapping[str, float]]],
    ) -> None:
        """Measures workloads that one kind of engine can answer."""
        started = _Started(self.peers, engine, env)
        async with started as (targets, processes):
            self.taken.missing |= started.missing
            for number in range(self.rounds + 1):
                for workload in workloads:
                    # Back and forth, so that what drifts favours nobody.
                    for target in targets if number % 2 else targets[::-1]:
                        asking = functools.partial(ask, workload, target, not number)
                        figures = await self._measure(target, processes, asking)
                        said = report.short(figures)
                        print(f"round {number}  {workload:35}  {target.name:14}  {said}")
                        if number:  # the first warms caches and connection pools
                            self.taken.add(workload, target.name, figures)
                if number:
                    report.save(self.taken, self.output)

    async def _measure(
        self,
        target: Target,
        processes: Processes,
        ask: Callable[[], Awaitable[Mapping[str, float]]],
    ) -> report.Figures:
        if not await until_back(target, processes):
            return {"down": 1.0}
        lives, before = processes.lives(target.parts), processes.cpu_s(target.parts)
        with processes.watched(target.parts) as most:
            try:
                figures = dict(await ask())
            except (OSError, subprocess.SubprocessError) as error:
                print(f"{target.name}: {error}", file=sys.stderr)
                return {"down": 1.0}
        after = processes.cpu_s(target.parts)
        answers = figures.pop("answers")
        if processes.lives(target.parts) != lives:
            figures["died"] = 1.0
        elif target.parts and answers:
            for name in target.parts:
                figures[f"cpu_ms {name}"] = 1000 * (after[name] - before[name]) / answers
            spent = sum(after.values()) - sum(before.values())
            figures["cpu_ms"] = 1000 * spent / answers
        if target.parts:
            figures["memory_mib"] = sum(most.values())
            figures |= {f"mib {name}": value for name, value in most.items()}
        await until_quiet(target, processes)
        return figures

    async def _load(self, workload: str, target: Target, is_warming: bool) -> Mapping[str, float]:
        body, connections, churn = LOADS[workload]
        seconds = 1 if is_warming else self.seconds
        loaded = await asyncio.to_thread(wrk, target, body, connections, seconds, churn)
        good = loaded["requests"] - loaded["refused"]
        return {
            "answers": loaded["requests"],
            "per_s": good / loaded["seconds"],
            "failed": loaded["failed"],
            "p50_ms": loaded["p50_ms"],
            "p99_ms": loaded["p99_ms"],
        }

    async def _pace(self, workload: str, target: Target, is_warming: bool) -> Mapping[str, float]:
        tokens, count, per_second = PACED[workload]
        if is_warming:
            tokens, count = min(tokens, 20), count // 5
        urls = ENGINES if target.name == ALONE else (target.url,)
        read = dict(await paced(urls, target, tokens, count, per_second))
        return {"answers": read.pop("streams"), **read}


def main() -> int:
    """Reads the command line, measures, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--peers", type=Path, help="The folder of the peers' environments.")
    parser.add_argument("--only", action="append", default=[], help="A part of a workload's name.")
    parser.add_argument("--output", type=Path, default=Path("bench-results/bench.json"))
    parser.add_argument("--document", type=Path, help="Markdown whose marked block is rewritten.")
    parser.add_argument("--read", type=Path, help="Measure nothing, show what this file holds.")
    arguments = parser.parse_args()
    if arguments.read:
        run = report.Run(**json.loads(arguments.read.read_text()))
    else:
        if not shutil.which("wrk"):
            raise SystemExit("the load generator is missing: apt-get install wrk")
        peers = arguments.peers.absolute() if arguments.peers else None
        only = tuple(arguments.only)
        bench = Bench(arguments.rounds, arguments.seconds, peers, only, arguments.output)
        run = bench.taken
        try:
            asyncio.run(bench.run())
        except StartError as error:
            run.missing["the rest of the run"] = str(error)
    report.show(run, arguments.output)
    if arguments.document:
        report.document(run, arguments.document)
    own = [figures for (_, name), figures in run.medians().items() if name == OWN]
    return 1 if not own or any(figures.get("failed", 1) for figures in own) else 0


if __name__ == "__main__":
    sys.exit(main())
