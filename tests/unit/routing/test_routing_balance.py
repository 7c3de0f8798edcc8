"""Load limits affinity: warm nodes draw calls, but none more than its share."""

import heapq
import random
from collections import OrderedDict, deque

import pytest

from services.routing.policy import BUILT_IN, Policy
from unit.routing.routing_mesh import Mesh, chat

NODES, SLOTS = 8, 16
TENANTS, PROMPT_TOKENS = 100, 2000
CACHE_TOKENS = 30 * PROMPT_TOKENS
PREFILL, DECODE_S = 4000.0, 2.0


class Engine:
    """Prefills one prompt at a time, answers in a fixed time, and caches whole prompts."""

    def __init__(self) -> None:
        self.cache: OrderedDict[int, None] = OrderedDict()
        self.waiting: deque[tuple[float, int]] = deque()
        self.running = 0
        self.prefilled_at = 0.0


class Workload:
    """Tenants with a system prompt each, calling by chance, on a virtual clock."""

    def __init__(self, policy: Policy, rate: float, seconds: float, skew: float) -> None:
        self.mesh = Mesh()
        self.mesh.use(policy)
        self.engines = [Engine() for _ in range(NODES)]
        self.waits: list[float] = []
        self.hits = self.repeats = self.calls = 0
        self.busy_s = [0.0] * NODES
        self.events: list[tuple[float, int, str, int]] = []
        self._number = 0
        source = random.Random(7)
        at, start = 0.0, self.mesh.clock.now
        weights = [1 / (i + 1) ** skew for i in range(TENANTS)]
        while at < seconds:
            at += source.expovariate(rate)
            self.push(start + at, "call", source.choices(range(TENANTS), weights)[0])
        for i in range(NODES):
            self.push(start + i * 0.06, "report", i)
        self.run(start + seconds)

    def push(self, at: float, what: str, which: int) -> None:
        self._number += 1
        heapq.heappush(self.events, (at, self._number, what, which))

    def run(self, end: float) -> None:
        seen: set[int] = set()
        for i in range(NODES):
            self.report(i)
        while self.events[0][0] < end:
            at, _, what, which = heapq.heappop(self.events)
            for i, engine in enumerate(self.engines):
                self.busy_s[i] += engine.running * (at - self.mesh.clock.now)
            self.mesh.clock.now = at
            if what == "report":
                self.report(which)
                self.push(at + 0.5, "report", which)
            elif what == "done":
                self.engines[which].running -= 1
                self.admit(which)
            else:
                self.calls += 1
                self.repeats += which in seen
                seen.add(which)
                first = self.mesh.order(chat(f"tenant {which} says " * 400))[0]
                self.engines[int(first)].waiting.append((at, which))
                self.admit(int(first))

    def report(self, i: int) -> None:
        engine = self.engines[i]
        load = engine.running + len(engine.waiting)
        self.mesh.report(str(i), load, slots=SLOTS, kv_capacity_tokens=CACHE_TOKENS)

    def admit(self, i: int) -> None:
        engine, now = self.engines[i], self.mesh.clock.now
        while engine.waiting and engine.running < SLOTS:
            called_at, tenant = engine.waiting.popleft()
            engine.running += 1
            hit = tenant in engine.cache
            self.hits += hit
            engine.cache[tenant] = None
            engine.cache.move_to_end(tenant)
            if len(engine.cache) * PROMPT_TOKENS > CACHE_TOKENS:
                engine.cache.popitem(last=False)
            tokens = 20 if hit else PROMPT_TOKENS
            engine.prefilled_at = max(engine.prefilled_at, now) + tokens / PREFILL
            self.waits.append(engine.prefilled_at - called_at)
            self.push(engine.prefilled_at + DECODE_S, "done", i)

    @property
    def hit_rate(self) -> float:
        """Of the best possible: every prompt a hit that any node has seen."""
        return self.hits / self.repeats

    @property
    def imbalance(self) -> float:
        return max(self.busy_s) * NODES / sum(self.busy_s)

    @property
    def p90(self) -> float:
        return sorted(self.waits)[int(0.9 * len(self.waits))]


@pytest.mark.parametrize("skew", [0.0, 0.9])
def test_caches_are_used_and_no_node_carries_much_more_than_its_share(skew: float) -> None:
    balanced = Workload(BUILT_IN["balanced"], rate=30, seconds=60, skew=skew)
    assert balanced.hit_rate >= 0.85
    assert balanced.imbalance <= 1.3
    least = Workload(Policy("least-loaded", {"queue": 1}), rate=30, seconds=60, skew=skew)
    assert balanced.p90 * 3 < least.p90


def test_without_the_bounds_a_popular_prompt_piles_up() -> None:
    bound = Workload(BUILT_IN["balanced"], rate=40, seconds=30, skew=2.0)
    weights = BUILT_IN["balanced"].weights
    loose = Workload(Policy("p", weights, load_factor=100), rate=40, seconds=30, skew=2.0)
    assert loose.imbalance > 1.5
    assert bound.imbalance <= 1.3


def test_one_callers_chat_stays_where_it_is() -> None:
    mesh = Mesh()
    for node_id in "abc":
        mesh.report(node_id)
    text = "Once upon a time. " * 60
    homes = set()
    for turn in range(20):
        homes.add(mesh.order(chat(text + "And then? " * turn))[0])
        mesh.clock.now += 3.0
        for node_id in "abc":
            mesh.report(node_id)
    assert len(homes) == 1


def test_counts_of_calls_live_through_a_long_time() -> None:
    mesh = Mesh()
    for _ in range(5):
        for node_id in "ab":
            mesh.report(node_id)
        assert mesh.pick(10) == {"a": 5, "b": 5}
        mesh.clock.now += 5_000.0
    assert all(0 < one.node.drawn < 1e90 for one in mesh.explain().values())
