"""Measures the semantic cache (docs/cache.md): what is near, what a lookup and a near answer cost.

    python tests/bench/semantic_cache.py

A mesh of its own, with the real embedding model and a simulated engine for chats. One call at a
time; CPU is that of each part over all calls of a row.
"""

import argparse
import asyncio
import dataclasses
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import psutil

from services.cli import models, stack
from services.cli.part import Part
from services.cli.supervisor import Supervisor
from services.inference.response_cache.semantic.nearest import Nearest, Vector, unit_vector
from services.inference.response_cache.semantic.wording import may_mean_the_same

MODEL = "sim"
COMPONENTS = 384
PAIRS = (
    ("What is the capital of France?", "What's the capital of France?"),
    ("How do I reset my password?", "How can I reset my password?"),
    ("Explain what a mutex is.", "Can you explain what a mutex is?"),
    ("Which city is the capital of France?", "What is the capital of France?"),
    ("How do I reset my password?", "I forgot my password, how do I reset it?"),
    ("Name three colours.", "Please name three colours."),
    ("What are your opening hours?", "When are you open?"),
    ("Flights from Paris to London", "Flights from London to Paris"),
    ("Is it safe to eat raw eggs?", "Is it not safe to eat raw eggs?"),
    ("Is it safe to eat raw eggs?", "Is it unsafe to eat raw eggs?"),
    ("Who won the game on Monday?", "Who won the game on Tuesday?"),
    ("Does version 3.1 support this?", "Does version 3.2 support this?"),
    ("Sort the list ascending.", "Sort the list descending."),
    ("How do I enable dark mode?", "How do I disable dark mode?"),
    ("Name three colours.", "Name four colours."),
    ("Name three colours.", "Name three animals."),
)
THINGS = (
    *("apple", "bridge", "candle", "desert", "engine", "forest", "garden"),
    *("harbour", "island", "jacket", "kettle", "ladder", "mirror", "needle"),
    *("orchard", "pencil", "quarry", "river", "saddle", "tunnel", "umbrella"),
    *("valley", "window", "yogurt", "zebra", "anchor", "basket", "castle"),
    *("dragon", "elephant", "feather", "glacier", "hammer", "insect", "jungle"),
    *("kitchen", "lantern", "magnet"),
)


def parts(options: stack.Options) -> list[Part]:
    """Returns the mesh's parts, with a simulator in the place of the engine for chats."""
    found = []
    for part in stack.build(options):
        if part.name == "engine-1":
            (port,) = part.ports.values()
            argv = [sys.executable, "-m", "services.inference.simulator", "--port", str(port)]
            part = dataclasses.replace(part, argv=[*argv, "--model", MODEL])
        elif part.name == "node-1":
            own = {
                "INFERMESH_ENGINE": "sim",
                "INFERMESH_SEMANTIC_CACHE_MODELS": MODEL,
                "INFERMESH_SEMANTIC_CACHE_EMBEDDING_MODEL": stack.EMBEDDING_MODEL,
                # What waits too long would be no hit, and nothing would be measured.
                "INFERMESH_SEMANTIC_CACHE_TIMEOUT_MS": "5000",
            }
            part = dataclasses.replace(part, env={**part.env, **own})
        found.append(part)
    return found


class Calls:
    """Asks the mesh, and takes the time and the CPU.

    Args:
        http: The front door.
        processes: The parts by name.
    """

    def __init__(self, http: httpx.Client, processes: Mapping[str, psutil.Process]) -> None:
        self._http = http
        self._processes = processes

    def row(self, label: str, texts: Sequence[str], wanted: str, **fields: object) -> None:
        """Prints a row of the table; fails where an answer is not what is measured."""
        before, took_ms = self._cpu_s(), []
        for text in texts:
            messages = [{"role": "user", "content": text}]
            body = {"model": MODEL, "messages": messages, "max_tokens": 20, **fields}
            began = time.perf_counter()
            answer = self._http.post("/v1/chat/completions", json=body)
            took_ms.append(1000 * (time.perf_counter() - began))
            near = "near " if "x-mesh-cache-similarity" in answer.headers else ""
            if (said := near + answer.headers.get("x-mesh-cache", "")) != wanted:
                raise SystemExit(f"{label}: {text!r} is a {said!r}: {answer.text[:200]}")
        after = self._cpu_s()
        used = {name: 1000 * (after[name] - before[name]) / len(texts) for name in after}
        cells = [f"{used[name]:.1f}" for name in used]
        p50, p90 = statistics.median(took_ms), sorted(took_ms)[int(0.9 * len(took_ms))]
        print(f"| {label} | {p50:.1f} | {p90:.1f} | {' | '.join(cells)} |", flush=True)

    def _cpu_s(self) -> dict[str, float]:
        return {name: sum(each.cpu_times()[:2]) for name, each in self._processes.items()}


def near(http: httpx.Client) -> None:
    """Prints how near pairs of questions are, and whether their wording parts them."""
    print("| | | cosine | wording parts them |\n| --- | --- | ---: | --- |")
    for pair in PAIRS:
        body = {"model": stack.EMBEDDING_MODEL, "input": pair}
        answer = http.post("/v1/embeddings", json=body).raise_for_status().json()
        one, other = (unit_vector(each["embedding"]) for each in answer["data"])
        assert one is not None
        assert other is not None
        says = "" if may_mean_the_same(*pair) else "yes"
        print(f"| {pair[0]} | {pair[1]} | {float(one @ other):.3f} | {says} |")


def any_vector(chance: random.Random) -> Vector:
    """Returns a vector in any direction."""
    made = unit_vector([chance.gauss(0, 1) for _ in range(COMPONENTS)])
    assert made is not None
    return made


def lookups() -> None:
    """Prints what it costs to look for a question among others."""
    print("\n| questions of one tenant | lookup, CPU µs, median of 9 |\n| ---: | ---: |")
    chance = random.Random(1)
    for count in (100, 1_000, 4_096, 10_000):
        kept = Nearest(count)
        for i in range(count):
            kept.put(b"group", i.to_bytes(4, "big"), "", any_vector(chance))
        vector = any_vector(chance)
        took_us = []
        for _ in range(9):
            began = time.process_time()
            for _ in range(20):
                kept.find(b"group", vector, 0.95)
            took_us.append((time.process_time() - began) / 20 * 1e6)
        print(f"| {count:,} | {statistics.median(took_us):.0f} |")


def chats(http: httpx.Client, processes: Mapping[str, psutil.Process]) -> None:
    """Prints what calls take, by what becomes of them."""
    names = " | ".join(processes)
    print(f"\n| CPU ms a call, one at a time | p50, ms | p90, ms | {names} |")
    print(f"| --- | ---: | ---: | {' | '.join(['---:'] * len(processes))} |")
    calls = Calls(http, processes)
    asked = [f"Explain what a {each} is." for each in THINGS]
    other = [f"Can you explain what a {each} is?" for each in THINGS]
    # Both ways are walked once before anything is measured.
    http.post("/v1/embeddings", json={"model": stack.EMBEDDING_MODEL, "input": "warm"})
    caching = {"enable_caching": True}
    calls.row("no cache", asked, "")
    # No near answer is given where tokens are weighed.
    calls.row("miss, not embedded", asked, "miss", **caching, logit_bias={"5": 1})
    calls.row("miss, embedded", asked, "miss", **caching)
    calls.row("near hit", other, "near hit", **caching)
    calls.row("near hit, asked again", other * 3, "near hit", **caching)
    calls.row("hit", asked * 3, "hit", **caching)


async def main(port: int, base_port: int, folder: Path) -> None:
    """Starts the mesh and measures."""
    options = stack.Options(
        state_dir=folder / "state",
        models_dir=models.default_folder(),
        port=port,
        base_port=base_port,
        chat_nodes=1,
    )
    supervisor = Supervisor(parts(options))
    await supervisor.start()
    try:
        key = (folder / "state" / "admin.key").read_text().strip()
        headers = {"authorization": f"Bearer {key}"}
        pids = {name: state.pid for name, state in supervisor.states().items()}
        wanted = ("node-1", "envoy", "auth", "routing", "embeddings", "node-embed", "engine-embed")
        processes = {name: psutil.Process(pids[name]) for name in wanted}
        url = f"http://127.0.0.1:{port}"

        def measure() -> None:
            with httpx.Client(base_url=url, headers=headers, timeout=30) as http:
                until_routed(http)
                near(http)
                lookups()
                chats(http, processes)

        await asyncio.to_thread(measure)
        print(f"\nload {os.getloadavg()[0]:.1f}")
    finally:
        await supervisor.stop()


def until_routed(http: httpx.Client) -> None:
    """Waits until both models answer."""
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    wanted = {
        "/v1/chat/completions": chat,
        "/v1/embeddings": {"model": stack.EMBEDDING_MODEL, "input": "hi"},
    }
    for _ in range(300):
        if all(http.post(path, json=body).status_code == 200 for path, body in wanted.items()):
            return
        time.sleep(0.1)
    raise SystemExit("the mesh does not answer")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--port", type=int, default=23498)
    arguments.add_argument("--base-port", type=int, default=23440)
    said = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="infermesh-bench-") as name:
        asyncio.run(main(said.port, said.base_port, Path(name)))
