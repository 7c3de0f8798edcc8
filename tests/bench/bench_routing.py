"""Measures what a routing policy does for prompts that share prefixes: `make bench-routing`.

The whole mesh runs, with simulated engines (services/inference/simulator) in the nodes' engines'
places, all in one process. Every policy gets the same questions at the same times. Before each
run every tenant has asked once, with the engines at ten times their speed; the prompts of one run
are in no cache when the next one begins. Questions come at random times at a given rate, however
long answers take.
"""

import argparse
import asyncio
import dataclasses
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import uvloop
from routing_figures import Figures, figures
from routing_load import Load, Outcome
from routing_plot import draw
from routing_report import show, show_claims
from routing_trace import Workload, best_possible

from services.cli import stack
from services.cli.part import Part
from services.cli.supervisor import Supervisor
from services.inference.simulator.options import EngineOptions

PORT, BASE_PORT = 25080, 25000
NODES = 8
ENGINE = EngineOptions(
    model=stack.CHAT_MODEL,
    prefill_rate=8000.0,
    decode_rate=60.0,
    decode_slowdown=0.03,
    slots=8,
    block_tokens=16,
    # 160,000 tokens a node; the tenants' prompts together are 900,000.
    blocks=10_000,
    answer_tokens=256,
    chunk_interval_s=0.2,
)
POLICIES: dict[str, dict[str, object] | None] = {  # None: built in
    "random": {"picker": "random"},
    "round_robin": None,
    "least_loaded": {"scorers": {"queue": 1.0}},
    "balanced": None,
}
_WARM_SPEED = 0.1
_NAME = "bench-"


def parts(options: stack.Options) -> list[Part]:
    """Returns the parts of the embedded mesh with one simulator for all engines."""
    found = []
    ports: list[int] = []
    first: Part | None = None
    for part in stack.build(options):
        if part.name in ("engine-embed", "node-embed"):
            continue
        if part.name.startswith("engine-"):
            ports += part.ports.values()
            first = first or part
            continue
        if part.name.startswith("node-"):
            env = {**part.env, "INFERMESH_ENGINE": "sim"}
            env["INFERMESH_ENGINE_SLOTS"] = str(ENGINE.slots)
            part = dataclasses.replace(part, env=env)
        found.append(part)
    assert first is not None
    argv = [sys.executable, "-m", "services.inference.simulator"]
    for port in ports:
        argv += ["--port", str(port)]
    for name in (
        *("model", "prefill_rate", "decode_rate", "decode_slowdown", "slots", "block_tokens"),
        *("blocks", "answer_tokens", "chunk_interval_s"),
    ):
        argv += ["--" + name.replace("_", "-"), str(getattr(ENGINE, name))]
    return [*found, dataclasses.replace(first, name="engines", argv=argv)]


class Bench:
    """One run of the bench against a mesh that is up.

    Args:
        http: The front door, with the admin's key.
        state: The mesh's state folder.
    """

    def __init__(self, http: httpx.AsyncClient, engine_ports: Sequence[int]) -> None:
        self._http = http
        self._engine_ports = engine_ports
        self._keys: list[str] = []

    async def prepare(self, tenants: int) -> None:
        """Waits for the nodes, makes a key a tenant and the policies."""
        for _ in range(600):
            reply = await self._http.get("/mesh/v1/nodes")
            if reply.status_code == 200:
                nodes = reply.json().get("nodes", [])
                if sum(node["state"] == "NODE_STATE_READY" for node in nodes) == NODES:
                    break
            await asyncio.sleep(0.1)
        else:
            raise SystemExit(f"not all nodes came up: {reply.text}")
        for tenant in range(tenants):
            body = {"display_name": f"bench {tenant}", "tenant": f"tenant-{tenant}"}
            made = await self._http.post("/mesh/v1/keys", json=body)
            self._keys.append(made.raise_for_status().json()["secret"])
        for name, policy in POLICIES.items():
            if policy is not None:
                made = await self._http.post(
                    "/mesh/v1/policies", json={"name": _policy_name(name), **policy}
                )
                _check(made)

    async def run(self, policy: str, rate: float, count: int, workload: Workload) -> Figures:
        """Measures one policy at one rate."""
        route = {"policy": _policy_name(policy)}
        _check(await self._http.put(f"/mesh/v1/model-routes/{workload.model}", json=route))
        load = Load("127.0.0.1", PORT, lambda tenant: self._keys[tenant])
        first, stream = workload.first(), workload.stream(rate, count)
        best = best_possible(
            first, stream, blocks=ENGINE.blocks * NODES, block_tokens=ENGINE.block_tokens
        )
        await self._speed(_WARM_SPEED)
        _all_good(await load.each(first, 2 * NODES))
        await self._speed(1.0)
        # The nodes' reports catch up.
        await asyncio.sleep(1.5)
        outcomes = await load.run(stream)
        load.close()
        return figures(policy, rate, outcomes, best, NODES)

    async def _speed(self, slow: float) -> None:
        async with httpx.AsyncClient() as http:
            for port in self._engine_ports:
                url = f"http://127.0.0.1:{port}/sim/faults"
                _check(await http.post(url, json={"slow": slow}))


def _policy_name(policy: str) -> str:
    return policy if POLICIES[policy] is None else (_NAME + policy).replace("_", "-")


def _check(reply: httpx.Response) -> None:
    if reply.status_code >= 300:
        raise SystemExit(f"{reply.request.url}: {reply.status_code} {reply.text}")


def _all_good(outcomes: Sequence[Outcome]) -> None:
    failed = [outcome.failure for outcome in outcomes if outcome.failure]
    if failed:
        print(f"before measuring, {len(failed)} of {len(outcomes)} failed: {failed[0]}")


def save(found: Sequence[Figures], workload: Workload, output: Path) -> None:
    """Writes the figures as JSON and the plot beside them."""
    output.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "nodes": NODES,
        "engine": dataclasses.asdict(ENGINE),
        "workload": dataclasses.asdict(workload),
        "figures": [
            # A percentile that falls on a failure has no number, and JSON no infinity.
            dataclasses.asdict(f)
            | {
                "of_best": f.of_best,
                "ttft_ms": [ms if math.isfinite(ms) else None for ms in f.ttft_ms],
            }
            for f in found
        ],
    }
    output.write_text(json.dumps(data, indent=2) + "\n")
    picture = output.with_suffix(".png")
    title = f"{NODES} nodes, {workload.tenants} tenants x {workload.system_tokens} prompt tokens"
    draw(found, picture, title if not workload.skew else f"{title}, skew {workload.skew:g}")
    print(f"written to {output} and {picture}")


async def measure(arguments: argparse.Namespace) -> int:
    """Starts the mesh and runs everything. Returns the exit status."""
    found: list[Figures] = []
    base = Workload(stack.CHAT_MODEL, skew=arguments.skew, seed=arguments.seed)
    with tempfile.TemporaryDirectory(prefix="infermesh-bench-") as folder:
        state = Path(folder) / "state"
        options = stack.Options(
            state_dir=state,
            models_dir=Path(folder),
            port=PORT,
            base_port=BASE_PORT,
            chat_nodes=NODES,
        )
        built = parts(options)
        supervisor = Supervisor(built)
        try:
            await supervisor.start()
            key = (state / "admin.key").read_text().strip()
            first_port = next(iter(built[-1].ports.values()))
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{PORT}",
                headers={"authorization": f"Bearer {key}"},
                timeout=30,
            ) as http:
                bench = Bench(http, range(first_port, first_port + NODES))
                await bench.prepare(base.tenants)
                salt = time.time_ns() if arguments.fresh else 0
                for rate in arguments.rates:
                    count = max(arguments.least, round(rate * arguments.seconds))
                    for policy in arguments.policies:
                        workload = dataclasses.replace(base, salt=f"{salt} {policy} {rate}")
                        found.append(await bench.run(policy, rate, count, workload))
                        last = found[-1]
                        print(
                            f"{rate:g}/s {policy}: p90 {last.ttft_ms[1]:.0f} ms, "
                            f"{100 * last.of_best:.1f} % of the best, load {last.load_skew:.2f}"
                            + (f", failed: {last.failures}" if last.failed else ""),
                            flush=True,
                        )
        finally:
            await supervisor.stop()
            if arguments.logs:
                _keep_logs(state, arguments.logs)
    show(found)
    kept = show_claims(found)
    save(found, base, arguments.output)
    return 0 if kept else 1


def _keep_logs(state: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for log in (state / "logs").glob("*.log"):
        (folder / log.name).write_bytes(log.read_bytes())


def main() -> int:
    """Reads the command line and runs the bench."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[8, 16, 32, 72])
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seconds", type=float, default=20, help="Of each run.")
    parser.add_argument("--least", type=int, default=800, help="Questions of each run at least.")
    parser.add_argument("--skew", type=float, default=0.0, help="How unequal tenants are.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="Prompts that no run has had.")
    parser.add_argument("--logs", type=Path, help="Keep the services' logs in this folder.")
    parser.add_argument("--output", type=Path, default=Path("bench-results/routing.json"))
    return uvloop.run(measure(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
