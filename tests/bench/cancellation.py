"""Measures how soon the engine stops when a caller hangs up: `make bench-cancellation`.

A mesh of its own with two nodes, one for chats and one for vectors and rankings, each over a
simulated engine that runs one request at a time. In every dialect, streaming and not, a caller is
brought into a state, closes the connection, and the time is taken until the engine's own metrics
(asked about once a millisecond) say that it is idle:

prefill    the engine reads a prompt that would take it 20 s
decode     the engine is writing
queued     the request waits in the engine's queue, behind another
node       the request waits in the node's queue; what is shown is whether the engine got it
"""

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import cancellation_calls as calls
import grpc
import httpx

from services.cli import stack
from services.cli.part import Part
from services.cli.supervisor import Supervisor

MODEL = calls.MODEL
PREFILL_RATE, DECODE_RATE, SLOTS = 1000, 50, 1
LONG = "word " * 16_000  # 20,000 tokens
SHORT = "Tell me all."
LIMIT_MS = 100
_LIMIT_S = 10.0


def parts(options: stack.Options) -> list[Part]:
    found = []
    for part in stack.build(options):
        if part.name.startswith("engine-"):
            (port,) = part.ports.values()
            argv = [sys.executable, "-m", "services.inference.simulator", "--port", str(port)]
            embeds = part.name == "engine-embed"
            argv += ["--model", calls.EMBEDDER, "--embeddings"] if embeds else ["--model", MODEL]
            argv += ["--slots", str(SLOTS)]
            argv += ["--prefill-rate", str(PREFILL_RATE), "--decode-rate", str(DECODE_RATE)]
            part = dataclasses.replace(part, argv=argv)
        elif part.name.startswith("node-"):
            own = {"INFERMESH_ENGINE": "sim", "INFERMESH_ENGINE_SLOTS": str(SLOTS)}
            part = dataclasses.replace(part, env={**part.env, **own})
        found.append(part)
    return found


class Engine:
    """The simulated engine's own word on what it does."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url)

    async def counts(self) -> tuple[int, int]:
        """Returns how many requests it runs, and how many wait there."""
        found = {"running": 0, "waiting": 0}
        for line in (await self._http.get("/metrics")).text.splitlines():
            for name in found:
                if line.startswith(f"vllm:num_requests_{name}"):
                    found[name] = int(float(line.rsplit(" ", 1)[1]))
        return found["running"], found["waiting"]

    async def until(self, wanted: Callable[[int, int], bool], what: str) -> None:
        deadline = time.monotonic() + _LIMIT_S
        while not wanted(*await self.counts()):
            if time.monotonic() > deadline:
                raise SystemExit(f"{what}: not within {_LIMIT_S:g} s: {await self.counts()}")
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def mesh(folder: Path, port: int, base_port: int) -> AsyncIterator[tuple[list[Engine], str]]:
    options = stack.Options(
        state_dir=folder / "state",
        models_dir=folder,
        port=port,
        base_port=base_port,
        chat_nodes=1,
    )
    found = parts(options)
    ports = [port for p in found if p.name.startswith("engine-") for port in p.ports.values()]
    supervisor = Supervisor(found)
    await supervisor.start()
    try:
        yield (
            [Engine(f"http://127.0.0.1:{each}") for each in ports],
            (folder / "state" / "admin.key").read_text().strip(),
        )
    finally:
        await supervisor.stop()


def _are(count: int, running: int, waiting: int) -> bool:
    return running + waiting == count


async def stopped_ms(row: calls.Row, engine: Engine, state: str) -> float | None:
    """Returns the milliseconds until the engine is rid of a call; None where it never got it."""
    fillers = {"queued": 1, "node": 2}.get(state, 0)
    # What goes before writes an answer; where there are none, its prompt is long.
    filler = LONG if row.embeds else SHORT
    hang_ups = []
    for count in range(1, fillers + 1):
        hang_ups.append(await row.call(filler))
        # One by one: texts that come together go to the node together.
        await engine.until(functools.partial(_are, count), "the calls before it")
    hang_up = await row.call(LONG if row.embeds or state == "prefill" else SHORT)
    here = fillers + (state != "node")
    await engine.until(functools.partial(_are, here), "the call at the engine")
    # Well within its prefill, its answer or its wait.
    await asyncio.sleep(0.2)
    if sum(counts := await engine.counts()) != here:
        raise SystemExit(f"{state}: the engine ended the call by itself: {counts}")
    began = time.monotonic()
    hang_up()
    if state == "node":
        # When there is room, nothing comes.
        await asyncio.sleep(0.1)
        for each in hang_ups:
            each()
        await engine.until(functools.partial(_are, 0), "an idle engine")
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert await engine.counts() == (0, 0), "the engine got a call that nobody waits for"
        return None
    await engine.until(functools.partial(_are, fillers), "an idle engine")
    took_ms = 1000 * (time.monotonic() - began)
    for each in hang_ups:
        each()
    await engine.until(functools.partial(_are, 0), "an idle engine")
    return took_ms


async def main() -> int:
    """Prints the table; fails where a single time is above the limit."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--port", type=int, default=23598)
    arguments.add_argument("--base-port", type=int, default=23540)
    arguments.add_argument("--only", action="append", default=[], help="A part of a dialect.")
    said = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="infermesh-bench-") as name:
        async with (
            mesh(Path(name), said.port, said.base_port) as (engines, key),
            grpc.aio.insecure_channel(f"127.0.0.1:{said.port}") as channel,
        ):
            found = calls.rows(said.port, key, channel)
            found = [
                row
                for row in found
                if not said.only or any(map(row.dialect.__contains__, said.only))
            ]
            await until_routed(said.port, key)
            print("milliseconds, median (most)\n")
            print(
                "| dialect | form | prefill | decode | queued at the engine | in the node's queue |"
            )
            print("| --- | --- | ---: | ---: | ---: | ---: |")
            worst = 0.0
            for row in found:
                cells = [row.dialect, row.form]
                for state in calls.CHAT_STATES:
                    if state not in row.states:
                        cells.append("–")
                        continue
                    took = [
                        await stopped_ms(row, engines[row.embeds], state)
                        for _ in range(said.rounds)
                    ]
                    known = [each for each in took if each is not None]
                    worst = max([worst, *known])
                    cells.append(
                        f"{statistics.median(known):.0f} ({max(known):.0f})"
                        if known
                        else "never sent"
                    )
                print(f"| {' | '.join(cells)} |", flush=True)
            load = os.getloadavg()[0]
            print(f"\n{said.rounds} each, load {load:.1f}; the most of all is {worst:.0f} ms")
    return worst > LIMIT_MS


async def until_routed(port: int, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers) as http:
        for _ in range(300):
            messages = [{"role": "user", "content": "hi"}]
            body = {"model": MODEL, "messages": messages, "max_tokens": 1}
            if (await http.post("/v1/chat/completions", json=body)).status_code == 200:
                return
            await asyncio.sleep(0.1)
    raise SystemExit("the mesh does not answer")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
