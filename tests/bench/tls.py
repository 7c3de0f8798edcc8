"""Measures what TLS costs: `make bench-tls`.

Two meshes run side by side, each with one node over a simulator that answers at once: one plain,
one with TLS at the front door and between all parts. They take turns under the same load, so that
what else the machine does hits both. Load comes from wrk (Debian package `wrk`), over connections
that last, and over a new connection for each call.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import httpx
import psutil

from services.cli import stack
from services.cli.part import Part
from services.cli.stack_tls import TlsOptions
from services.cli.supervisor import Supervisor

HERE = Path(__file__).parent
PORTS = {"plain": (23498, 23400), "tls": (23499, 23450)}
CHUNKS = 64
_MESSAGES = [{"role": "user", "content": "x" * 900}]
_UNARY = {"model": stack.CHAT_MODEL, "messages": _MESSAGES}
WORKLOADS = {
    "unary, 1 KB": (_UNARY, True),
    f"stream, {CHUNKS} chunks": ({**_UNARY, "stream": True}, True),
    "unary, a connection each": (_UNARY, False),
}
_CALLERS = 16


def options(form: str, folder: Path) -> stack.Options:
    port, base_port = PORTS[form]
    return stack.Options(
        state_dir=folder / form,
        models_dir=folder,
        port=port,
        base_port=base_port,
        chat_nodes=1,
        tls=TlsOptions(mesh=form == "tls"),
    )


def parts(form: str, folder: Path) -> list[Part]:
    found = []
    for part in stack.build(options(form, folder)):
        if part.name in ("engine-embed", "node-embed", "embeddings"):
            continue
        if part.name.startswith("engine-"):
            (port,) = part.ports.values()
            argv = [sys.executable, "-m", "services.inference.simulator", "--port", str(port)]
            argv += ["--model", stack.CHAT_MODEL, "--answer-tokens", str(CHUNKS)]
            part = dataclasses.replace(part, argv=argv)
        elif part.name.startswith("node-"):
            part = dataclasses.replace(part, env={**part.env, "INFERMESH_ENGINE": "openai"})
        after = tuple(f"{form}-{name}" for name in part.after)
        found.append(dataclasses.replace(part, name=f"{form}-{part.name}", after=after))
    return found


def wrk(url: str, body: object, key: str, keeps: bool, seconds: int) -> dict[str, float]:
    env = {**os.environ, "BENCH_BODY": json.dumps(body)}
    env["BENCH_HEADERS"] = f"authorization: Bearer {key}"
    command = ["wrk", "-t1", f"-c{_CALLERS}", f"-d{seconds}s", "--timeout", "10s", "--latency"]
    command += ["-s", str(HERE / "post.lua")]
    if not keeps:
        env["BENCH_HEADERS"] += "\nconnection: close"
    done = subprocess.run(
        [*command, f"{url}/v1/chat/completions"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def cpu(pids: Mapping[str, int]) -> dict[str, float]:
    used = {}
    for name, pid in pids.items():
        times = psutil.Process(pid).cpu_times()
        used[name] = times.user + times.system
    return used


async def wait_for_node(url: str, key: str) -> None:
    body = {**_UNARY, "max_tokens": 1}
    async with httpx.AsyncClient(verify=False) as http:
        for _ in range(300):
            headers = {"authorization": f"Bearer {key}"}
            reply = await http.post(f"{url}/v1/chat/completions", json=body, headers=headers)
            if reply.status_code == 200:
                return
            await asyncio.sleep(0.1)
    raise SystemExit(f"{url} does not answer: {reply.text}")


async def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=int, default=4)
    said = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="infermesh-bench-") as name:
        folder = Path(name)
        supervisor = Supervisor([part for form in PORTS for part in parts(form, folder)])
        await supervisor.start()
        try:
            samples: dict[tuple[str, str], list[dict[str, float]]] = {}
            urls = {
                form: f"{'https' if form == 'tls' else 'http'}://127.0.0.1:{port}"
                for form, (port, _) in PORTS.items()
            }
            keys = {form: (folder / form / "admin.key").read_text().strip() for form in PORTS}
            pids = {name: status.pid or 0 for name, status in supervisor.states().items()}
            for form in PORTS:
                await wait_for_node(urls[form], keys[form])
            for number in range(said.rounds + 1):
                for workload, (body, keeps) in WORKLOADS.items():
                    for form in PORTS:
                        own = {
                            name.removeprefix(f"{form}-"): pid
                            for name, pid in pids.items()
                            if name.startswith(f"{form}-") and "engine" not in name
                        }
                        before = cpu(own)
                        loaded = await asyncio.to_thread(
                            wrk, urls[form], body, keys[form], keeps, said.seconds
                        )
                        after = cpu(own)
                        if number == 0:  # warms caches and connection pools
                            continue
                        figures = {
                            f"cpu {name}": 1000 * (after[name] - before[name]) / loaded["requests"]
                            for name in own
                        }
                        figures["cpu"] = sum(figures.values())
                        figures["per_s"] = loaded["requests"] / loaded["seconds"]
                        figures["failed"] = loaded["failed"]
                        figures["p50_ms"] = loaded["p50_ms"]
                        samples.setdefault((workload, form), []).append(figures)
        finally:
            await supervisor.stop()
    print("| workload | | answers/s | CPU-ms a request | p50, ms | failed | of which |")
    for (workload, form), taken in samples.items():
        middle = {name: statistics.median(each[name] for each in taken) for name in taken[0]}
        parts_ = sorted(
            ((v, n.removeprefix("cpu ")) for n, v in middle.items() if n.startswith("cpu ")),
            reverse=True,
        )
        listed = ", ".join(f"{name} {value:.3f}" for value, name in parts_ if value >= 0.005)
        print(
            f"| {workload} | {form} | {middle['per_s']:,.0f} | {middle['cpu']:.3f} "
            f"| {middle['p50_ms']:.2f} | {sum(each['failed'] for each in taken):.0f} | {listed} |"
        )


if __name__ == "__main__":
    asyncio.run(main())
