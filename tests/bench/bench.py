"""Measures what the mesh adds to an engine: `make bench`.

The engine is a simulator (services/inference/simulator) that answers at once, so that the figures
are the mesh's own. Direct calls and calls through the mesh take turns in every round, all on this
one machine; the figures are medians over the rounds. Load comes from wrk (Debian package `wrk`).
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
from collections.abc import Mapping
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from services.cli import stack
from services.cli.part import Part
from services.cli.supervisor import Supervisor

HERE = Path(__file__).parent
PORT, BASE_PORT = 28080, 28000
ENGINE_PORT = BASE_PORT + 41
CHUNKS = 64
_MESSAGES = [{"role": "user", "content": "x" * 900}]
_UNARY = {"model": stack.CHAT_MODEL, "messages": _MESSAGES}
WORKLOADS = {  # what is sent, and from how many connections
    "unary, 1 KB, 16 callers": (_UNARY, 16),
    "unary, 1 KB, 64 callers": (_UNARY, 64),
    f"stream, {CHUNKS} chunks, 16 callers": ({**_UNARY, "stream": True}, 16),
}

Figures = dict[str, float]


def parts(options: stack.Options) -> list[Part]:
    """Returns the parts of the embedded mesh with simulators in the engines' places."""
    found = []
    for part in stack.build(options):
        if part.name in ("engine-embed", "node-embed"):
            continue
        if part.name.startswith("engine-"):
            (port,) = part.ports.values()
            argv = [sys.executable, "-m", "services.inference.simulator", "--port", str(port)]
            argv += ["--model", stack.CHAT_MODEL, "--answer-tokens", str(CHUNKS)]
            part = dataclasses.replace(part, argv=argv)
        elif part.name.startswith("node-"):
            env = {**part.env, "INFERMESH_ENGINE": "openai"}
            part = dataclasses.replace(part, env=env)
        found.append(part)
    return found


def wrk(url: str, body: object, key: str | None, connections: int, seconds: int) -> Figures:
    """Loads one address and returns what wrk measured."""
    env = {**os.environ, "BENCH_BODY": json.dumps(body)}
    env.pop("BENCH_KEY", None)
    if key:
        env["BENCH_KEY"] = key
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
    command += ["--latency", "-s", str(HERE / "post.lua"), f"{url}/v1/chat/completions"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """Returns the CPU seconds that each process has used so far."""
    used = {}
    for name, pid in pids.items():
        times = psutil.Process(pid).cpu_times()
        used[name] = times.user + times.system
    return used


def measure(key: str, pids: Mapping[str, int], rounds: int, seconds: int) -> dict[str, Figures]:
    """Runs all workloads in interleaved rounds and returns the medians."""
    mesh, engine = f"http://127.0.0.1:{PORT}", f"http://127.0.0.1:{ENGINE_PORT}"
    samples: dict[str, list[Figures]] = {}
    for number in range(rounds + 1):
        for workload, (body, connections) in WORKLOADS.items():
            for target, url, secret in (("direct", engine, None), ("mesh", mesh, key)):
                before = cpu_seconds(pids)
                loaded = wrk(url, body, secret, connections, seconds)
                after = cpu_seconds(pids)
                alone = wrk(url, body, secret, 1, (seconds + 1) // 2)
                if number == 0:  # warms caches and connection pools
                    continue
                figures = {
                    "per_s": loaded["requests"] / loaded["seconds"],
                    "failed": loaded["failed"] + alone["failed"],
                    "p50_ms": alone["p50_ms"],
                    "p99_ms": alone["p99_ms"],
                }
                if target == "mesh":
                    for name in pids:
                        spent = 1000 * (after[name] - before[name]) / loaded["requests"]
                        figures[f"cpu_ms {name}"] = spent
                samples.setdefault(f"{workload} | {target}", []).append(figures)
    return {
        row: {
            name: (sum if name == "failed" else statistics.median)(s[name] for s in taken)
            for name in taken[0]
        }
        for row, taken in samples.items()
    }


def show(result: Mapping[str, Mapping[str, float]]) -> None:
    """Prints the figures as tables."""
    console = Console()
    table = Table(title="Medians; latency with 1 connection")
    for column in ("workload", "target", "per second", "p50 ms", "p99 ms", "failed"):
        table.add_column(column, justify="left" if column in ("workload", "target") else "right")
    for row, figures in result.items():
        workload, target = row.split(" | ")
        table.add_row(
            workload,
            target,
            f"{figures['per_s']:.0f}",
            f"{figures['p50_ms']:.2f}",
            f"{figures['p99_ms']:.2f}",
            f"{figures['failed']:.0f}",
        )
    console.print(table)
    table = Table(title="What the mesh adds")
    for column in ("workload", "p50 ms", "p99 ms", "CPU-ms per request", "of which"):
        table.add_column(column)
    for workload in WORKLOADS:
        direct, mesh = result[f"{workload} | direct"], result[f"{workload} | mesh"]
        cpu = {k.removeprefix("cpu_ms "): v for k, v in mesh.items() if k.startswith("cpu_ms ")}
        own = {name: v for name, v in cpu.items() if not name.startswith("engine-")}
        listed = sorted(own.items(), key=lambda item: -item[1])
        table.add_row(
            workload,
            f"{mesh['p50_ms'] - direct['p50_ms']:.2f}",
            f"{mesh['p99_ms'] - direct['p99_ms']:.2f}",
            f"{sum(own.values()):.3f}",
            ", ".join(f"{name} {v:.3f}" for name, v in listed if v >= 0.001),
        )
    console.print(table)


def write(result: Mapping[str, Figures], rounds: int, output: Path) -> None:
    """Writes the figures as JSON."""
    output.parent.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "rounds": rounds}
    output.write_text(json.dumps({"machine": machine, "result": result}, indent=2) + "\n")
    print(f"written to {output}")


async def run(rounds: int, seconds: int, output: Path) -> int:
    """Starts the mesh, measures, shows and writes the figures. Returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="infermesh-bench-") as folder:
        state = Path(folder) / "state"
        options = stack.Options(
            state_dir=state, models_dir=Path(folder), port=PORT, base_port=BASE_PORT
        )
        supervisor = Supervisor(parts(options))
        await supervisor.start()
        try:
            key = (state / "admin.key").read_text().strip()
            await until_answered(key)
            pids = {name: status.pid for name, status in supervisor.states().items()}
            result = await asyncio.to_thread(measure, key, pids, rounds, seconds)
        finally:
            await supervisor.stop()
    show(result)
    write(result, rounds, output)
    return 1 if any(figures["failed"] for figures in result.values()) else 0


async def until_answered(key: str) -> None:
    """Waits until the mesh answers a chat."""
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {key}"}) as http:
        for _ in range(300):
            try:
                reply = await http.post(f"http://127.0.0.1:{PORT}/v1/chat/completions", json=_UNARY)
                if reply.status_code == 200:
                    return
            except httpx.TransportError:
                pass  # not up yet
            await asyncio.sleep(0.1)
    raise SystemExit("the mesh does not answer")


def main() -> int:
    """Reads the command line and runs the bench."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("bench-results/bench.json"))
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("the load generator is missing: apt-get install wrk")
    return asyncio.run(run(arguments.rounds, arguments.seconds, arguments.output))


if __name__ == "__main__":
    sys.exit(main())
