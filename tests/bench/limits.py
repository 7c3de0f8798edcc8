"""Shows that limits are exact over replicas, and what a decision costs: `make bench-limits`.

Exactness: three replicas in processes of their own, 64 workers that hammer one key with 1,000 calls
and 100,000 tokens a minute. Every answer of Redis is written down with its time, which orders them
all. The whole log is then played through the written definition of
`limit_service.proto`, kept in plain Python: each call must have been let in where the definition
lets it in, and refused where it does not. This process stands for the ledger, and settles what the
calls took in truth.

Cost: one replica, four scopes with all five limits each, so many calls per second at random times,
each admitted, ended and settled.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import redis
import uvloop

from services.auth.limiting import engine, wire
from services.auth.limiting.contract import Period, ScopeLimits, Settlement, Total, Verdict, Wanted
from services.cli import embedded
from services.cli.supervisor import Supervisor

REPLICAS, WORKERS = 3, 64
REQUESTS, TOKENS = 1000, 100_000
KEY = ScopeLimits("k:bench", REQUESTS, TOKENS, None, 10**12)
HOLD_S = 300
PORT = 23001


def today() -> str:
    """Returns the day of UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime())


class Nothing:
    """A ledger that begins empty."""

    async def get_totals(self, wanted: Sequence[Wanted]) -> list[Total]:
        """Returns nothing, of each that is wanted."""
        return [Total(*each, 0, 0, 0) for each in wanted]


class Logged(engine.RedisLimiter):
    """A limiter that writes down what Redis answers, and when by Redis' clock."""

    log: list[tuple[Any, ...]]

    def _on_answer(self, batch: Any, reply: Any) -> None:
        second, micros, results, _ = reply
        for i, operation in enumerate(batch):
            if isinstance(operation, wire.Admission):
                entry = operation.request_id, operation.tokens, results[i][0]
                self.log.append((second, micros, i, "admit", *entry))
        super()._on_answer(batch, reply)

    async def _call(self, argument: bytes) -> Any:
        reply = await super()._call(argument)
        for i, op in enumerate(json.loads(argument)[4]):
            if op[0] == wire.SETTLE:
                self.log.append((reply[0], reply[1], i, "settle", op[1], op[2]))
        return reply


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Logged]:
    """Runs a limiter that writes down what it does."""
    limiter = Logged(engine.LimiterOptions(url, HOLD_S), Nothing())
    limiter.log = []
    started = asyncio.Event()
    task = asyncio.create_task(limiter.run(started))
    await started.wait()
    yield limiter
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await limiter.close()


async def replica(url: str, number: int, seconds: float, log: Path) -> None:
    """Hammers the key; prints the id and the true tokens of each call that ended."""
    chance = random.Random(number)
    async with opened(url) as limiter:
        until = time.monotonic() + seconds

        async def work(worker: int) -> None:
            count = 0
            while time.monotonic() < until:
                count += 1
                id_ = f"{number}-{worker}-{count}"
                verdict = await limiter.admit(id_, [KEY], chance.randrange(40, 200), 0)
                if not verdict.admitted:
                    await asyncio.sleep(0.06 * chance.random())
                    continue
                await asyncio.sleep(0.05 * chance.random())
                limiter.release(id_, reached_node=True)
                print(id_, chance.randrange(20, 180), flush=True)

        await asyncio.gather(*(work(i) for i in range(number, WORKERS, REPLICAS)))
        print_log(log, limiter.log)


def print_log(path: Path, log: list[tuple[Any, ...]]) -> None:
    """Writes a replica's log to a file."""
    path.write_text(json.dumps(log))


class Definition:
    """What the definition says of one key, second by second."""

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        self.tokens: Counter[int] = Counter()
        self.counted: dict[str, list[list[int]]] = {}

    def sums(self, second: int) -> tuple[int, int]:
        """Returns the calls and tokens of the sixty slots that end with a second."""
        slots = range(second - 59, second + 1)
        return sum(self.requests[s] for s in slots), sum(self.tokens[s] for s in slots)

    def admits(self, second: int, id_: str, tokens: int) -> bool:
        """Returns whether a call is let in, and counts it."""
        requests, counted = self.sums(second)
        if requests + 1 > REQUESTS or counted + tokens > TOKENS:
            return False
        self.requests[second] += 1
        self.tokens[second] += tokens
        self.counted[id_] = [[second, tokens]]
        return True

    def settle(self, second: int, id_: str, tokens: int) -> None:
        """Makes what is counted of a call its true tokens."""
        parts = self.counted[id_]
        surplus = sum(part[1] for part in parts) - tokens
        if surplus < 0:
            parts.append([second, 0])
            parts[-1][1] -= surplus
            self.tokens[second] -= surplus
        for part in reversed(parts):
            back = min(part[1], max(0, surplus))
            part[1] -= back
            surplus -= back
            self.tokens[part[0]] -= back


def play(log: list[list[Any]]) -> dict[str, Any]:
    """Plays a log through the definition; `wrongly…` are the differences."""
    definition = Definition()
    found: Counter[str] = Counter()
    most: dict[str, int] = defaultdict(int)
    last = None
    for second, _, _, what, id_, *rest in sorted(log, key=lambda entry: entry[:3]):
        if what == "settle":
            definition.settle(second, id_, rest[0])
            last = None
            continue
        tokens, kind = rest
        if kind == wire.MISSING:
            continue
        found["asked"] += 1
        # A refusal changes nothing: the next question of the same size or more in the same
        # second has the same answer.
        if last is not None and second == last[0] and tokens >= last[1]:
            says = False
        else:
            says = definition.admits(second, id_, tokens)
            last = None if says else (second, tokens)
        found["let in"] += kind == wire.ADMITTED
        found["wrongly let in"] += kind == wire.ADMITTED and not says
        found["wrongly refused"] += kind == wire.REFUSED and says
        if says:
            requests, counted = definition.sums(second)
            most["requests"] = max(most["requests"], requests)
            most["tokens"] = max(most["tokens"], counted)
    ends = sorted(definition.requests)
    return {
        **found,
        "most calls in 60 slots": most["requests"],
        "most tokens in 60 slots": most["tokens"],
        "slots": ends[-1] - ends[0] + 1,
        "definition": definition,
    }


async def exactness(url: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Runs the replicas, settles what they print, and plays their logs."""
    truth: dict[str, int] = {}
    waiting: list[Settlement] = []
    logs = [folder / f"replica-{i}.json" for i in range(REPLICAS)]
    children = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, "--replica", str(i), "--url", url),
            *("--seconds", str(seconds), "--log", str(logs[i])),
            stdout=asyncio.subprocess.PIPE,
        )
        for i in range(REPLICAS)
    ]

    async def read(child: asyncio.subprocess.Process) -> None:
        assert child.stdout is not None
        async for line in child.stdout:
            id_, tokens = line.decode().split()
            truth[id_] = int(tokens)
            waiting.append(Settlement(id_, int(tokens)))

    async with opened(url) as ledger:
        reading = asyncio.gather(*(read(child) for child in children))
        version = 0
        while not reading.done() or waiting:
            await asyncio.sleep(0.05)
            taken, waiting[:] = waiting[:1000], waiting[1000:]
            if taken:
                version += 1
                total = Total(KEY.scope, Period.DAY, today(), 0, 0, version)
                total = total._replace(tokens=sum(truth.values()) - sum(s.tokens for s in waiting))
                for _ in range(2):  # a sender that is not sure sends again
                    await ledger.settle(taken, [total])
        await reading
        for child in children:
            if await child.wait():
                raise SystemExit("a replica failed")
        uses = {use.limit: use for use in await ledger.state(KEY)}
        now = int(time.time())
        log = ledger.log + [tuple(entry) for path in logs for entry in json.loads(path.read_text())]
    # The second sending finds everything as it should be: it is in the log, and changes nothing.
    result = play([list(entry) for entry in log])
    definition = result.pop("definition")
    day = uses["tokens_per_day"]
    return {
        **result,
        "true tokens": sum(truth.values()),
        "counter of the day": day.used,
        "reserved at the end": day.reserved,
        "counter of the minute": uses["tokens_per_minute"].used,
        "by the definition": [definition.sums(now + i)[1] for i in (-1, 0)],
    }


class Free:
    """Lets everything in at once: what remains is the cost of measuring."""

    def admit(self, *_: Any) -> "asyncio.Future[Verdict]":
        """Returns a verdict."""
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        future.set_result(Verdict(True))
        return future

    def release(self, _: str, *, reached_node: bool, caller_left: bool = False) -> None:
        """Does nothing."""

    async def settle(self, _: Sequence[Settlement], __: Sequence[Total]) -> None:
        """Does nothing."""


async def load(limiter: Any, rate: int, seconds: float) -> tuple[float, list[float]]:
    """Calls, ends and settles at a rate; returns CPU seconds a call, and milliseconds, sorted."""
    chance = random.Random(1)
    many = (10**9, 10**12, 10**6, 10**15, 10**15)
    scopes = [ScopeLimits(scope, *many) for scope in ("t:a", "p:a/b", "k:x", "m:x/y")]
    times: list[float] = []
    ended: list[Settlement] = []
    pending: set[asyncio.Future[Any]] = set()
    loop = asyncio.get_running_loop()
    name = f"{time.time()}"

    def ask(number: int) -> None:
        id_ = f"{name}-{number}"
        began = time.perf_counter()

        def answered(future: "asyncio.Future[Any]") -> None:
            times.append((time.perf_counter() - began) * 1000)
            assert future.result().admitted
            pending.discard(future)
            loop.call_later(0.2, end, id_)

        future = limiter.admit(id_, scopes, 100, 1000)
        pending.add(future)
        future.add_done_callback(answered)

    def end(id_: str) -> None:
        limiter.release(id_, reached_node=True)
        ended.append(Settlement(id_, 80))

    async def settle() -> None:
        while True:
            await asyncio.sleep(0.1)
            taken, ended[:] = ended[:], ()
            await limiter.settle(taken, [])

    ask(-1)
    await asyncio.gather(*pending)
    times.clear()
    settling = asyncio.create_task(settle())
    began, cpu = time.perf_counter(), time.process_time()
    asked, due = 0, began
    while due < began + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        ask(asked)
        asked += 1
        due += chance.expovariate(rate)
    spent = (time.process_time() - cpu) / asked
    await asyncio.gather(*pending)
    settling.cancel()
    return spent, sorted(times)


async def cost(url: str, rate: int, seconds: float) -> dict[str, float]:
    """Measures one replica at a rate; CPU in µs, times in ms."""
    bare, _ = await load(Free(), rate, seconds / 2)
    async with engine.opened(engine.LimiterOptions(url, HOLD_S), Nothing()) as limiter:
        with redis.Redis.from_url(url) as client:
            before = client.info("cpu")
            spent, times = await load(limiter, rate, seconds)
            after = client.info("cpu")
    redis_cpu = sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys"))
    return {
        "calls": len(times),
        "CPU of the replica, µs a call": (spent - bare) * 1e6,
        "CPU of Redis, µs a call": redis_cpu / len(times) * 1e6,
        "p50, ms": times[len(times) // 2],
        "p99, ms": times[int(0.99 * len(times))],
    }


async def main(arguments: argparse.Namespace) -> None:
    """Runs both against a Redis of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = embedded.redis(folder, PORT, folder)
        supervisor = Supervisor([store.part])
        await supervisor.start()
        try:
            costs = await cost(store.url, arguments.rate, min(20.0, arguments.seconds))
            print(
                json.dumps({k: round(v, 2) for k, v in costs.items()}, indent=2, ensure_ascii=False)
            )
            found = await exactness(store.url, arguments.seconds, folder)
            print(json.dumps(found, indent=2))
        finally:
            await supervisor.stop()
    failures = [
        found["wrongly let in"] > 0,
        found["wrongly refused"] > 0.01 * found["let in"],
        found["counter of the day"] != found["true tokens"],
        found["reserved at the end"] != 0,
        found["counter of the minute"] not in found["by the definition"],
    ]
    if any(failures):
        raise SystemExit("the limits are not exact")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--replica", type=int)
    parser.add_argument("--url")
    parser.add_argument("--log", type=Path)
    chosen = parser.parse_args()
    if chosen.replica is None:
        uvloop.run(main(chosen))
    else:
        uvloop.run(replica(chosen.url, chosen.replica, chosen.seconds, chosen.log))
