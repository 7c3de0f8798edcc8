"""Flame graphs of the mesh's processes under the bench's load: `make profile`.

Python is looked at by py-spy, everything else by perf (Debian package `linux-perf`). One process at
a time, so that looking at one does not slow the others that it waits for. Processes that do next to
nothing under a load are left out.
"""

import argparse
import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench_flame import draw, stacks_of
from bench_load import LOADS, wrk
from bench_mesh import OWN, Started
from bench_processes import Processes
from bench_targets import Target

WORKLOADS = {"unary": "unary, 1 KB, 16 callers", "stream": "stream, 64 chunks, 16 callers"}
_NATIVE = ("envoy", "postgres", "redis")
_LEAST_SHARE = 0.02
"""Of one core."""
_LOOK_S = 2
_SPARE_S = 2
_PY_SPY_RATE, _PERF_RATE = 200, 499


def python_graph(pid: int, seconds: int, output: Path) -> str:
    """Writes the graph of a Python process; returns why it could not, nothing when it did."""
    program = Path(sys.executable).with_name("py-spy")
    command = [str(program), "record", "--format", "flamegraph", "--subprocesses"]
    command += ["--rate", str(_PY_SPY_RATE), "--duration", str(seconds)]
    command += ["--output", str(output), "--pid", str(pid)]
    if said := _said(command, seconds):
        return said
    # The title is py-spy's own command, of any length.
    drawn = re.sub(r'(id="title"[^>]*>)[^<]*', rf"\g<1>{output.stem}", output.read_text(), count=1)
    output.write_text(drawn)
    return ""


def native_graph(name: str, pids: Sequence[int], seconds: int, output: Path) -> str:
    """Writes the graph of any other process; returns why it could not, nothing when it did."""
    if not shutil.which("perf"):
        return "there is no perf: apt-get install linux-perf"
    data = output.with_suffix(".perf")
    command = ["perf", "record", "--freq", str(_PERF_RATE), "--call-graph", "fp"]
    command += ["--output", str(data), "--pid", ",".join(map(str, pids))]
    try:
        if said := _said([*command, "--", "sleep", str(seconds)], seconds):
            return said
        # Inlined calls are found by reading all of a binary's debugging symbols, for each address.
        command = ["perf", "script", "--no-inline", "--fields", "comm,ip,sym,dso"]
        read = subprocess.run(
            [*command, "--input", str(data)], capture_output=True, text=True, check=False
        )
        stacks = stacks_of(read.stdout.splitlines())
        if not stacks:
            return "perf saw nothing"
        output.write_text(draw(f"{name} (code without symbols is [file])", stacks))
    finally:
        data.unlink(missing_ok=True)
    return ""


def _said(command: Sequence[str], seconds: int) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=seconds + 60
    )
    if not done.returncode:
        return ""
    lines = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
    return f"{Path(command[0]).name}: {lines[0].strip()}"


async def profile(seconds: int, only: Sequence[str], folder: Path) -> list[str]:
    """Writes all graphs; returns what could not be written."""
    missing = []
    async with Started(None, (), {}) as (targets, processes):
        (mesh,) = (target for target in targets if target.name == OWN)
        for short, workload in WORKLOADS.items():
            load = LOADS[workload]
            await asyncio.to_thread(wrk, mesh, load[0], load[1], _LOOK_S, load[2])
            parts = await _busy(mesh, workload, processes)
            for name in [each for each in parts if not only or each in only]:
                output = folder / f"{short}-{name}.svg"
                if said := await _one(name, processes, mesh, workload, seconds, output):
                    missing.append(f"{name} under {short}: {said}")
                else:
                    print(f"{output}", flush=True)
    return missing


async def _busy(mesh: Target, workload: str, processes: Processes) -> list[str]:
    """Returns the parts that work under a load, the busiest first."""
    body, connections, churn = LOADS[workload]
    before = processes.cpu_s(mesh.parts)
    await asyncio.to_thread(wrk, mesh, body, connections, _LOOK_S, churn)
    after = processes.cpu_s(mesh.parts)
    spent = {name: (after[name] - before[name]) / _LOOK_S for name in mesh.parts}
    found = [name for name in mesh.parts if spent[name] >= _LEAST_SHARE]
    return sorted(found, key=lambda name: -spent[name])


async def _one(
    name: str, processes: Processes, mesh: Target, workload: str, seconds: int, output: Path
) -> str:
    """Puts the load on and looks at one part meanwhile."""
    body, connections, churn = LOADS[workload]
    pids = processes.pids(name)
    loading = asyncio.to_thread(wrk, mesh, body, connections, seconds + _SPARE_S, churn)
    load = asyncio.create_task(loading)
    await asyncio.sleep(_SPARE_S / 2)
    if name in _NATIVE:
        said = await asyncio.to_thread(native_graph, name, pids, seconds, output)
    else:
        said = await asyncio.to_thread(python_graph, pids[0], seconds, output)
    await load
    return said


def main() -> int:
    """Reads the command line and writes the graphs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=6, help="For how long each is looked at.")
    parser.add_argument("--only", action="append", default=[], help="A process; all by default.")
    parser.add_argument("--output", type=Path, default=Path("bench-results/profiles"))
    said = parser.parse_args()
    said.output.mkdir(parents=True, exist_ok=True)
    missing = asyncio.run(profile(said.seconds, said.only, said.output.absolute()))
    for line in missing:
        print(f"missing: {line}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
