"""Measures the mesh beside its peers, in one run: `make bench`.

Two simulated engines (services/inference/simulator) answer all of them. Every workload goes to
every target in every round, one after the other, all on this one machine; figures are medians over
the rounds. The mesh does all that it does in production: keys, limits, routing and accounting are
on. Load that asks for as much as possible comes from wrk (Debian package `wrk`); streams whose
chunks are timed are read by `bench_streams.py`.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import bench_figures as report
import httpx
import psutil
from bench_streams import read_streams
from bench_targets import MODEL, Peers, Target, engine_part

from services.cli import stack
from services.cli.part import Part
from services.cli.supervisor import Supervisor

HERE = Path(__file__).parent

PORT, BASE_PORT, PEERS_PORT = 28080, 28000, 28100
ENGINE_PORTS = (BASE_PORT + 41, BASE_PORT + 42)
ENGINES = tuple(f"http://127.0.0.1:{port}" for port in ENGINE_PORTS)
_CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 900}]}
_LONG = {"model": MODEL, "messages": [{"role": "user", "content": "word " * 20_000}]}
LOADS = {  # what is asked, over how many connections, and whether each call makes a new one
    "unary, 1 KB, 16 callers": (_CHAT, 16, False),
    "unary, 1 KB, 64 callers": (_CHAT, 64, False),
    "unary, 100 KB, 16 callers": (_LONG, 16, False),
    "stream, 64 chunks, 16 callers": ({**_CHAT, "stream": True}, 16, False),
    "unary, new connections, 16 callers": (_CHAT, 16, True),
}
_PACED = ("--decode-rate", "20", "--decode-slowdown", "0", "--slots", "1024")
_PACED += ("--chunk-interval-s", "0", "--stamped")
_OWN_LIMITS = {"requests_per_minute": 10**9, "tokens_per_minute": 10**12}


def mesh_parts(options: stack.Options, engine: Sequence[str], env: Mapping[str, str]) -> list[Part]:
    """Returns the parts of the embedded mesh with simulators in the engines' places."""
    found = []
    for part in stack.build(options):
        if part.name in ("engine-embed", "node-embed"):
            continue
        if part.name.startswith("engine-"):
            (port,) = part.ports.values()
            part = engine_part(part.name, port, part.log_file, *engine)
        elif part.name.startswith("node-"):
            settings = {**part.env, "INFERMESH_ENGINE": "openai", **env}
            part = dataclasses.replace(part, env=settings)
        found.append(part)
    return found


def wrk(target: Target, body: object, connections: int, seconds: int, churn: bool) -> dict:
    """Loads one target and returns what wrk measured."""
    headers = {**target.headers, **({"connection": "close"} if churn else {})}
    env = {
        **os.environ,
        "BENCH_BODY": json.dumps(body),
        "BENCH_HEADERS": "\n".join(f"{name}: {value}" for name, value in headers.items()),
    }
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s"]
    command += ["--latency", "-s", str(HERE / "post.lua"), f"{target.url}/v1/chat/completions"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


class Processes:
    """The processes of the targets, with all that they have started."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._roots = {name: psutil.Process(pid) for name, pid in pids.items()}

    def cpu_s(self, names: Iterable[str]) -> dict[str, float]:
        """Returns the CPU seconds that each part has used so far."""
        return {name: sum(self._cpu(each) for each in self._tree(name)) for name in names}

    def memory_mib(self, names: Iterable[str]) -> float:
        """Returns the memory of the parts now; pages that processes share count once."""
        return sum(self._pss(each) for name in names for each in self._tree(name)) / 2**20

    def _tree(self, name: str) -> list[psutil.Process]:
        root = self._roots[name]
        return [root, *root.children(recursive=True)]

    def _cpu(self, process: psutil.Process) -> float:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return times.user + times.system

    def _pss(self, process: psutil.Process) -> int:
        try:
            return int(process.memory_full_info().pss)
        except psutil.NoSuchProcess:
            return 0


@dataclasses.dataclass
class Bench:
    """One run.

    Attributes:
        rounds: How often everything is measured, a first round to warm up not counted.
        seconds: How long a load lasts.
        peers: Where the peers are; None to measure without them.
        only: Workloads to run; empty for all.
    """

    rounds: int
    seconds: int
    peers: Path | None
    only: tuple[str, ...]

    def __post_init__(self) -> None:
        """Begins with nothing measured."""
        self.samples: dict[tuple[str, str], list[report.Figures]] = {}

    async def run(self) -> report.Result:
        """Measures everything and returns the medians, by workload and target."""
        loads = {name: load for name, load in LOADS.items() if self._wants(name)}
        if loads:
            async with self._started((), {}) as (targets, processes):
                await asyncio.to_thread(self._load, loads, targets, processes)
        if self._wants(report.SLOW) or self._wants(report.MANY):
            slots = {"INFERMESH_ENGINE_SLOTS": "1024"}
            async with self._started(_PACED, slots) as (targets, processes):
                for number in range(self.rounds + 1):
                    for target in targets:
                        await self._pace(number, target, processes)
        medians: report.Result = {}
        for (workload, target), taken in self.samples.items():
            figures = {}
            for name in dict.fromkeys(name for each in taken for name in each):
                values = [each[name] for each in taken if name in each]
                combine = {"failed": sum, "memory_mib": max}.get(name, statistics.median)
                figures[name] = combine(values)
            medians.setdefault(workload, {})[target] = figures
        return medians

    def _wants(self, workload: str) -> bool:
        return not self.only or any(part in workload for part in self.only)

    def _load(self, loads: Mapping, targets: Sequence[Target], processes: Processes) -> None:
        for number in range(self.rounds + 1):
            for workload, (body, connections, churn) in loads.items():
                for target in targets:
                    before = processes.cpu_s(target.parts)
                    loaded = wrk(target, body, connections, self.seconds, churn)
                    after = processes.cpu_s(target.parts)
                    done = max(loaded["requests"], 1)
                    spent = {n: 1000 * (after[n] - before[n]) / done for n in target.parts}
                    good = loaded["requests"] - loaded["refused"]
                    figures = {
                        "per_s": good / loaded["seconds"],
                        "failed": loaded["failed"],
                        "p50_ms": loaded["p50_ms"],
                        "p99_ms": loaded["p99_ms"],
                        "memory_mib": processes.memory_mib(target.parts),
                        **{f"cpu_ms {name}": value for name, value in spent.items()},
                    }
                    if target.parts:
                        figures["cpu_ms"] = sum(spent.values())
                    self._note(number, workload, target, figures)

    async def _pace(self, number: int, target: Target, processes: Processes) -> None:
        body = {**_CHAT, "stream": True}
        for workload, tokens, count, per_second in (
            (report.SLOW, 20, 20 * self.seconds, 20.0),
            (report.MANY, 200, 500, 100.0),
        ):
            if not self._wants(workload):
                continue
            before = processes.cpu_s(target.parts)
            read = await read_streams(
                target.url,
                target.headers,
                {**body, "max_tokens": tokens},
                count=count,
                per_second=per_second,
            )
            after = processes.cpu_s(target.parts)
            figures = {
                "failed": float(read.failed),
                "memory_mib": processes.memory_mib(target.parts),
                **report.percentiles("first", read.first_ms),
                **report.percentiles("chunk", read.delays_ms),
            }
            if target.parts:
                spent = sum(after.values()) - sum(before.values())
                figures["cpu_ms"] = 1000 * spent / max(read.streams, 1)
            self._note(number, workload, target, figures)

    def _note(self, number: int, workload: str, target: Target, figures: report.Figures) -> None:
        print(f"round {number}  {workload:34}  {target.name:14}  {report.short(figures)}")
        if number:  # the first warms caches and connection pools
            self.samples.setdefault((workload, target.name), []).append(figures)

    def _started(self, engine: Sequence[str], env: Mapping[str, str]) -> "_Started":
        return _Started(self.peers, engine, env)


class _Started:
    """Everything that is measured, running for as long as the context lasts."""

    def __init__(self, peers: Path | None, engine: Sequence[str], env: Mapping[str, str]) -> None:
        self._peers, self._engine, self._env = peers, engine, env

    async def __aenter__(self) -> tuple[list[Target], Processes]:
        self._folder = tempfile.TemporaryDirectory(prefix="infermesh-bench-")
        folder = Path(self._folder.name)
        state = folder / "state"
        options = stack.Options(state_dir=state, models_dir=folder, port=PORT, base_port=BASE_PORT)
        parts = mesh_parts(options, self._engine, self._env)
        own = tuple(part.name for part in parts if not part.name.startswith("engine-"))
        others = []
        if self._peers is not None:
            others = Peers(self._peers, PEERS_PORT, ENGINES, folder).all()
        self._supervisor = Supervisor([*parts, *(part for _, part in others)])
        await self._supervisor.start()
        try:
            key = await _limited_key((state / "admin.key").read_text().strip())
            url = f"http://127.0.0.1:{PORT}"
            mesh = Target("infermesh", url, {"authorization": f"Bearer {key}"}, own)
            targets = [Target("engine alone", ENGINES[0]), *(target for target, _ in others)]
            targets.insert(2 if others else 1, mesh)
            for target in targets:
                await _until_answered(target)
        except BaseException:
            await self.__aexit__()
            raise
        states = self._supervisor.states()
        return targets, Processes({name: status.pid for name, status in states.items()})

    async def __aexit__(self, *_: object) -> None:
        await self._supervisor.stop()
        self._folder.cleanup()


async def _limited_key(admin: str) -> str:
    """Makes a user's key with limits that it does not reach, so that they are kept."""
    headers = {"authorization": f"Bearer {admin}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", headers=headers) as http:
        made = await http.post("/mesh/v1/keys", json={"display_name": "bench", "tenant": "bench"})
        made.raise_for_status()
        scope = {"key_id": made.json()["key"]["key_id"]}
        limits = {"limits": {"scope": scope, **_OWN_LIMITS}}
        (await http.put("/mesh/v1/limits", json=limits)).raise_for_status()
    await asyncio.sleep(1)
    return str(made.json()["secret"])


async def _until_answered(target: Target) -> None:
    """Waits until a target answers a chat."""
    said = ""
    async with httpx.AsyncClient(headers=dict(target.headers), timeout=30) as http:
        for _ in range(300):
            try:
                body = {**_CHAT, "max_tokens": 2}
                reply = await http.post(f"{target.url}/v1/chat/completions", json=body)
                if reply.status_code == 200:
                    return
                said = f"{reply.status_code} {reply.text[:200]}"
            except httpx.TransportError as error:
                said = repr(error)
            await asyncio.sleep(0.1)
    raise SystemExit(f"{target.name} does not answer: {said}")


def main() -> int:
    """Reads the command line, measures, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--peers", type=Path, help="The folder of the peers' environments.")
    parser.add_argument("--only", action="append", default=[], help="A part of a workload's name.")
    parser.add_argument("--output", type=Path, default=Path("bench-results/bench.json"))
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("the load generator is missing: apt-get install wrk")
    peers = arguments.peers.absolute() if arguments.peers else None
    bench = Bench(arguments.rounds, arguments.seconds, peers, tuple(arguments.only))
    result = asyncio.run(bench.run())
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    report.write(result, {**machine, "rounds": arguments.rounds}, arguments.output)
    own = [targets["infermesh"] for targets in result.values()]
    return 1 if any(figures["failed"] for figures in own) else 0


if __name__ == "__main__":
    sys.exit(main())
