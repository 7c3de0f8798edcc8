"""Measures what each part of Envoy's configuration costs: `make bench-envoy`.

One mesh runs over simulated engines. Beside its Envoy run others with the same configuration less
one part each; they get the same load in turns. What is shown is the first quartile of the turns,
since work beside it only ever adds. Differences below about 0.02 ms are chance.
"""

import argparse
import asyncio
import contextlib
import copy
import random
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml
from bench_load import LOADS, wrk
from bench_mesh import BASE_PORT, OWN, PORT, Started, until_answered
from bench_targets import MODEL, Target

Config = dict[str, Any]
_FRONT, _INTERNAL = PORT + 100, PORT + 150
_SERVICES = ("auth", "registry", "routing", "embeddings", "metrics", "jobs")
_WHO = {  # what auth would have said of the caller
    "x-mesh-key-id": "key_bench",
    "x-mesh-tenant": "bench",
    "x-mesh-role": "user",
    "x-mesh-model": MODEL,
}


def _manager(config: Config) -> Config:
    listener = config["static_resources"]["listeners"][0]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def _without(*names: str) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        manager = _manager(config)
        filters = manager["http_filters"]
        manager["http_filters"] = [each for each in filters if each["name"] not in names]
        (host,) = manager["route_config"]["virtual_hosts"]
        for place in (host, *host["routes"]):
            settings = place.get("typed_per_filter_config", {})
            place["typed_per_filter_config"] = {
                key: value for key, value in settings.items() if key not in names
            }

    return change


def _without_auth(config: Config) -> None:
    _without("envoy.filters.http.ext_authz", "infermesh.identify")(config)
    early = _manager(config)["early_header_mutation_extensions"][0]["typed_config"]
    early["mutations"] += [
        {"append": {"header": {"key": key, "value": value}}} for key, value in _WHO.items()
    ]


def _without_logs(config: Config) -> None:
    _manager(config)["access_log"] = []


def _without_statistics(config: Config) -> None:
    config["stats_config"] = {"stats_matcher": {"reject_all": True}}


def _over_tcp(config: Config) -> None:
    for cluster in config["static_resources"]["clusters"]:
        name = cluster["name"].removesuffix("_xds")
        if name in _SERVICES:
            (endpoints,) = cluster["load_assignment"]["endpoints"]
            port = BASE_PORT + 1 + _SERVICES.index(name)
            address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
            endpoints["lb_endpoints"] = [{"endpoint": {"address": address}}]


PARTS: Mapping[str, Callable[[Config], None]] = {
    "nothing": lambda _: None,
    "ext_authz": _without_auth,
    "front.lua": _without("envoy.filters.http.lua"),
    "grpc_field_extraction": _without("envoy.filters.http.grpc_field_extraction"),
    "identify": _without("infermesh.identify"),
    "header_mutation, cors, grpc_web": _without(
        "envoy.filters.http.header_mutation",
        "envoy.filters.http.cors",
        "envoy.filters.http.grpc_web",
    ),
    "access logs": _without_logs,
    "statistics": _without_statistics,
    "sockets": _over_tcp,
}


@contextlib.contextmanager
def _envoys(pid: int, headers: Mapping[str, str]) -> Iterator[dict[str, tuple[int, Target]]]:
    """Runs an Envoy for each part that is left out, beside the mesh's own, `pid`."""
    own = psutil.Process(pid)
    command, state = own.cmdline(), own.cwd()
    at = command.index("--config-path") + 1
    command[command.index("--log-level") + 1] = "error"
    config = yaml.safe_load(Path(command[at]).read_text())
    running: list[subprocess.Popen[bytes]] = []
    found = {}
    with tempfile.TemporaryDirectory(prefix="infermesh-bench-") as folder:
        try:
            for number, (name, change) in enumerate(PARTS.items()):
                changed = copy.deepcopy(config)
                changed["admin"]["address"]["pipe"]["path"] = f"{folder}/{number}.sock"
                listeners = changed["static_resources"]["listeners"]
                for listener, port in zip(listeners, (_FRONT, _INTERNAL), strict=True):
                    listener["address"]["socket_address"]["port_value"] = port + number
                change(changed)
                path = Path(folder) / f"{number}.yaml"
                path.write_text(yaml.safe_dump(changed))
                command[at] = str(path)
                process = subprocess.Popen(command, cwd=state, stdout=subprocess.DEVNULL)
                running.append(process)
                url = f"http://127.0.0.1:{_FRONT + number}"
                found[name] = process.pid, Target(name, url, headers)
            yield found
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


async def _measure(workload: str, rounds: int, seconds: int) -> None:
    body, connections, churn = LOADS[workload]
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in PARTS}
    async with Started(None, (), {}) as (targets, processes):
        mesh = next(target for target in targets if target.name == OWN)
        services = [name for name in mesh.parts if name != "envoy"]
        (envoy,) = processes.pids("envoy")
        with _envoys(envoy, mesh.headers) as envoys:
            for _, target in envoys.values():
                if said := await until_answered(target, 30):
                    raise SystemExit(f"Envoy without {target.name} does not answer: {said}")
            for turn in range(rounds + 1):
                order = list(envoys.items())
                random.Random(turn).shuffle(order)
                for name, (pid, target) in order:
                    before = _cpu_s(pid), sum(processes.cpu_s(services).values())
                    done = await asyncio.to_thread(wrk, target, body, connections, seconds, churn)
                    after = _cpu_s(pid), sum(processes.cpu_s(services).values())
                    if done["failed"] or done["refused"]:
                        raise SystemExit(f"calls fail without {name}")
                    own, others = (
                        1000 * (b - a) / done["requests"]
                        for a, b in zip(before, after, strict=True)
                    )
                    if turn:  # the first warms up
                        taken[name].append((own, own + others, -done["requests"] / done["seconds"]))
    print(f"{workload}: CPU-ms a call")
    print(f"{'without':34} {'Envoy':>8} {'all':>8} {'calls/s':>8}")
    for name, values in taken.items():
        own, every, rate = (
            statistics.quantiles(each, n=4)[0] for each in zip(*values, strict=True)
        )
        print(f"{name:34} {own:8.3f} {every:8.3f} {-rate:8.0f}")


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=LOADS, default=next(iter(LOADS)))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=1)
    arguments = parser.parse_args()
    asyncio.run(_measure(arguments.workload, arguments.rounds, arguments.seconds))


if __name__ == "__main__":
    main()
