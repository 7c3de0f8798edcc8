"""Measures what stands between an engine and its caller in time: `make bench-streams`.

So many streams at a time, of an engine that writes 20 tokens a second to each, are read from the
engine itself, through plain Envoy and through the mesh, one after the other, in turns. Every chunk
carries the time at which the engine wrote it, on the machine's monotonic clock; what it took until
it is read is its delay. A stream's first byte is timed by its caller, from the request on. What the
engine alone shows is the jitter of the simulator and of the reader, which the others have too.

Streams begin evenly spread over the length of one, each moved at random within its share, and each
that ends is followed by another: as many as wanted are open at any time. What is read while they
become that many, or fewer again, does not count. Engines write in steps, as those that batch do:
all streams of an engine get their token one right after the other. Callers keep their connections
from one stream to the next.
"""

import argparse
import asyncio
import contextlib
import functools
import gc
import json
import os
import platform
import random
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import uvloop
from bench_figures import Figures, percentiles, short
from bench_mesh import ENGINES, Started, engine_urls
from bench_processes import Processes
from bench_streams import Read, Stream, request
from bench_targets import MODEL, Target

TOKENS_PER_S, TOKENS = 20, 100
LENGTH_S = (TOKENS - 1) / TOKENS_PER_S
_PACED = [
    *("--decode-rate", str(TOKENS_PER_S), "--decode-slowdown", "0", "--slots", "1024"),
    *("--chunk-interval-s", "0", "--stamped"),
]
_ALONE, _MESH = "engine alone", "infermesh"
_PATIENCE_S = 60.0
_KEYS = ("first_p50_ms", "first_p99_ms", "chunk_p50_ms", "chunk_p99_ms")


def body(chance: random.Random) -> dict[str, object]:
    """Returns a chat of 1 KB that begins like no other, so that no node is the one to ask."""
    text = f"{chance.random()}".ljust(900, "x")
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, "stream": True, "max_tokens": TOKENS}


@dataclass
class Sample:
    """What one target did in one round.

    Attributes:
        read: What was read while as many streams were open as wanted.
        failed: Streams that did not end well, of all.
        cpu_us: CPU time of each of the target's processes per chunk, in microseconds.
    """

    read: Read
    failed: int
    cpu_us: dict[str, float]

    def figures(self) -> Figures:
        """Returns the percentiles."""
        first, delays = self.read.first_ms, self.read.delays_ms
        return {**percentiles("first", first), **percentiles("chunk", delays)}


class _Caller(Stream):
    """Keeps its connection for the next stream."""

    def ask(self, sent: bytes) -> None:
        transport = self._transport
        Stream.__init__(self, sent, self._read)
        self.connection_made(transport)

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()

    def _finish(self, is_whole: bool) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._read.failed += not is_whole
        if not is_whole:
            self._transport.close()
        if not self.done.done():
            self.done.set_result(None)


class Callers:
    """Those who ask, each on a connection that is kept from stream to stream, as SDKs do it.

    Args:
        read: Gets what they read.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._idle: dict[int, list[_Caller]] = {}

    async def ask(self, host: str, port: int, sent: bytes) -> None:
        """Asks once and reads the stream to its end."""
        idle = self._idle.setdefault(port, [])
        while idle and not idle[-1].is_open:
            idle.pop()
        if idle:
            caller = idle.pop()
            caller.ask(sent)
        else:
            loop = asyncio.get_running_loop()
            make = functools.partial(_Caller, sent, self._read)
            _, caller = await loop.create_connection(make, host, port)
        try:
            async with asyncio.timeout(LENGTH_S + _PATIENCE_S):
                await caller.done
        except TimeoutError:
            caller.give_up()
        idle.append(caller)

    def close(self) -> None:
        """Closes the connections that nobody uses."""
        for idle in self._idle.values():
            for caller in idle:
                caller.close()
        self._idle.clear()


async def measure(
    target: Target,
    processes: Processes,
    streams: int,
    seconds: float,
    chance: random.Random,
    engines: int = len(ENGINES),
) -> Sample:
    """Keeps so many streams open at a target for so many seconds."""
    urls = engine_urls(engines) if target.name == _ALONE else (target.url,)
    loop = asyncio.get_running_loop()
    read = Read()
    callers = Callers(read)
    apart_s = LENGTH_S / streams
    count = streams + round(seconds / apart_s)
    # Collections stop the reader for longer than some of what it measures.
    gc.disable()
    before = processes.cpu_s(target.parts)
    began = loop.time()

    async def one(number: int) -> None:
        await asyncio.sleep(began + (number + chance.random()) * apart_s - loop.time())
        url = urls[number % len(urls)]
        await callers.ask(*request(url, target.headers, body(chance)))

    tasks = [asyncio.create_task(one(number)) for number in range(count)]
    await asyncio.sleep(began + streams * apart_s - loop.time())
    read.first_ms.clear()
    read.delays_ms.clear()
    await asyncio.sleep(began + count * apart_s - loop.time())
    counted = Read(read.delays_ms.copy(), read.first_ms.copy())
    await asyncio.gather(*tasks)
    callers.close()
    after = processes.cpu_s(target.parts)
    gc.enable()
    gc.collect()
    chunks = count * TOKENS
    spent_us = {name: 1e6 * (after[name] - before[name]) / chunks for name in target.parts}
    return Sample(counted, count - read.streams, spent_us)


async def run(rounds: int, seconds: float, streams: int, engines: int) -> dict[str, list[Sample]]:
    """Measures all targets in turns; the first round warms up and does not count."""
    chance = random.Random(7)
    samples: dict[str, list[Sample]] = {}
    slots = {"INFERMESH_ENGINE_SLOTS": "1024"}
    started = Started(Path(), _PACED, slots, only=("plain Envoy",), engines=engines)
    async with started as (targets, processes):
        for target in targets:
            await measure(target, processes, streams, 2.0, chance, engines)
        for number in range(1, rounds + 1):
            for target in targets:
                sample = await measure(target, processes, streams, seconds, chance, engines)
                samples.setdefault(target.name, []).append(sample)
                print(f"round {number}  {target.name:13}  {short(sample.figures())}", flush=True)
    return samples


def summary(samples: dict[str, list[Sample]]) -> dict[str, Figures]:
    """Returns medians over the rounds, and what stands above the engine's alone."""
    found: dict[str, Figures] = {}
    for name, taken in samples.items():
        rounds = [sample.figures() for sample in taken]
        figures = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        if alone := found.get(_ALONE):
            figures |= {f"added_{key}": figures[key] - alone[key] for key in _KEYS}
        for part in taken[0].cpu_us:
            figures[f"cpu_us {part}"] = statistics.median(each.cpu_us[part] for each in taken)
        figures["cpu_us"] = sum(v for k, v in figures.items() if k.startswith("cpu_us "))
        figures["failed"] = sum(sample.failed for sample in taken)
        figures["chunks"] = sum(len(sample.read.delays_ms) for sample in taken)
        figures["streams"] = sum(len(sample.read.first_ms) for sample in taken)
        found[name] = figures
    return found


def table(found: dict[str, Figures]) -> str:
    """Returns the figures as a table in Markdown."""
    lines = [
        "| ms | first byte p50 | p99 | chunk p50 | p99 | CPU-µs a chunk | failed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, figures in found.items():
        cells = [f"{figures[key]:.2f}" for key in _KEYS]
        cpu = "–" if name == _ALONE else f"{figures['cpu_us']:.0f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {cpu} | {figures['failed']:.0f} |")
    for name, figures in found.items():
        if name != _ALONE:
            cells = [f"{figures[f'added_{key}']:+.2f}" for key in _KEYS]
            lines.append(f"| added by {name} | {' | '.join(cells)} | | |")
    return "\n".join(lines)


def _batch() -> None:
    """Keeps the reader from interrupting what it measures on a machine with few cores.

    It stands for callers on machines of their own. What it starts inherits that: the engines, plain
    Envoy and the mesh are treated alike.
    """
    with contextlib.suppress(PermissionError):  # some sandboxes forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main() -> int:
    """Reads the command line, measures, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--engines", type=int, default=len(ENGINES))
    parser.add_argument("--output", type=Path, default=Path("bench-results/streams.json"))
    said = parser.parse_args()
    _batch()
    found = summary(uvloop.run(run(said.rounds, said.seconds, said.streams, said.engines)))
    machine = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }
    said.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "rounds": said.rounds,
        "seconds": said.seconds,
        "streams": said.streams,
        "engines": said.engines,
    }
    result = {"machine": machine, **settings, "result": found}
    said.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{table(found)}\n\nwritten to {said.output}")
    return 1 if found[_MESH]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
