"""Measures what one routing decision costs: `make bench-decisions`.

A decision here is all that routing does for a call: from the bytes of Envoy's message to the bytes
of the answer, by the built-in policy `balanced`. Times are CPU time of this thread. The nodes
report random loads, the prompts are those of many tenants with a prefix each.
"""

import argparse
import binascii
import gc
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import psutil
from envoy.service.auth.v3 import external_auth_pb2
from google.protobuf import struct_pb2

from infermesh.registry.v1 import node_service_pb2, resources_pb2
from services.kit import headers
from services.routing import gateway, prompt, servicer_check
from services.routing.book import Book
from services.routing.deciding import Decider
from services.routing.pools import Pools
from services.routing.prefix_index import DEFAULT_MAX_ENTRIES, PrefixIndex
from services.routing.router import Router
from services.routing.scheduler import Scheduler
from services.routing.splits import SplitCounts
from services.routing.view import MeshView

MODEL = "sim"
TENANTS = 150
_REPORT_EVERY = 200
_WARM_UP = 500


@dataclass(frozen=True)
class Cost:
    """CPU time of decisions in microseconds."""

    nodes: int
    prompt_bytes: int
    mean: float
    p50: float
    p99: float
    slowest: float


class Desk:
    """Routing with so many nodes, without its sockets."""

    def __init__(self, nodes: int) -> None:
        self._chance = random.Random(nodes)
        self._view = MeshView(time.monotonic, PrefixIndex())
        pools = Pools(self._view)
        scheduler = Scheduler(self._view, pools, time.monotonic)
        router = Router(scheduler, Book(pools.forget), SplitCounts())
        self._decider = Decider(self._view, router)
        self._nodes = [self._node(number) for number in range(nodes)]
        self._turn = 0
        self._view.apply(
            node_service_pb2.WatchMeshResponse(
                synced=True,
                models=[resources_pb2.Model(name=MODEL)],
                nodes=[self._reported(node) for node in self._nodes],
            )
        )

    def _node(self, number: int) -> resources_pb2.Node:
        high, low = divmod(number, 250)
        return resources_pb2.Node(
            node_id=f"node-{number}",
            address=f"10.0.{high}.{low + 1}:17121",
            engine="vllm",
            state=resources_pb2.NODE_STATE_READY,
            models=[
                resources_pb2.ServedModel(
                    name=MODEL, capabilities=[resources_pb2.CAPABILITY_CHAT], context_length=32768
                )
            ],
        )

    def _reported(self, node: resources_pb2.Node) -> resources_pb2.Node:
        chance, load = self._chance, node.load
        load.running, load.queued = chance.randrange(30), chance.randrange(4)
        load.slots = 32
        load.kv_use = chance.random()
        load.kv_capacity_tokens = 400_000
        load.time_to_first_token = chance.random()
        node.report_time.GetCurrentTime()
        return node

    def decide(self, question: bytes) -> bytes:
        """Returns the answer to an encoded `CheckRequest`."""
        request = external_auth_pb2.CheckRequest.FromString(question)
        answer = servicer_check.answer(self._decider, request)
        self._decider.router.settle()
        return answer

    def report(self) -> None:
        """Has every node report."""
        nodes = [self._reported(node) for node in self._nodes]
        self._view.apply(node_service_pb2.WatchMeshResponse(nodes=nodes))


def messages(prompt_bytes: int, count: int) -> list[bytes]:
    """Returns auth's questions about calls with prompts of a length."""
    chance = random.Random(prompt_bytes)
    systems = [_text(chance, prompt_bytes - 200) for _ in range(TENANTS)]
    return [_message(chance.choice(systems), _text(chance, 120)) for _ in range(count)]


def _text(chance: random.Random, size: int) -> str:
    return chance.randbytes(size).hex()[:size]


def _message(system: str, question: str) -> bytes:
    body = orjson.dumps(
        {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": question},
            ],
        }
    )
    taken = prompt.cut(body)
    assert taken is not None
    message = external_auth_pb2.CheckRequest()
    message.attributes.request.http.headers.update(
        {
            "x-envoy-original-path": "/v1/chat/completions",
            headers.KEY_ID: "key_5r0c9q2m7x1v",
            headers.ROLE: "user",
            headers.MODEL: MODEL,
        }
    )
    known = message.attributes.metadata_context.filter_metadata
    fields = struct_pb2.Struct()
    fields.update({"model": MODEL, "stream": True, "user": "user-17"})
    known[gateway.REQUEST_NAMESPACE].CopyFrom(fields)
    cut = struct_pb2.Struct()
    cut.update({"text": _base64(taken[0]), "size": taken[1]})
    known[gateway.PROMPT_NAMESPACE].CopyFrom(cut)
    return message.SerializeToString()


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def cost(nodes: int, prompt_bytes: int, decisions: int) -> Cost:
    """Measures decisions at one size."""
    desk = Desk(nodes)
    asked = messages(prompt_bytes, 1000)
    taken: list[int] = []
    clock = time.thread_time_ns
    gc.collect()
    gc.freeze()
    for number in range(_WARM_UP + decisions):
        if number % _REPORT_EVERY == 0:
            desk.report()
        data = asked[number % len(asked)]
        began = clock()
        answer = desk.decide(data)
        spent = clock() - began
        if number >= _WARM_UP:
            taken.append(spent)
    assert headers.DESTINATION.encode() in answer
    taken.sort()
    return Cost(
        nodes,
        prompt_bytes,
        mean=sum(taken) / len(taken) / 1000,
        p50=taken[len(taken) // 2] / 1000,
        p99=taken[len(taken) * 99 // 100] / 1000,
        slowest=taken[-1] / 1000,
    )


def index_memory(offered: int, nodes: int = 8) -> dict[str, float]:
    """Offers that many distinct prefixes to an index, and returns what it then takes."""
    process = psutil.Process()
    index = PrefixIndex()
    numbers = [index.add_node() for _ in range(nodes)]
    for number in numbers:
        index.set_capacity(number, 1 << 40)
    gc.collect()
    before = process.memory_info().rss
    at: dict[str, float] = {}
    spent = time.thread_time()
    mask = (1 << 64) - 1
    for i in range(offered):
        # Spread over 64 bits as hashes are.
        first = (i * 0x9E3779B97F4A7C15) & mask
        index.insert(numbers[i % nodes], (first, first ^ 0x5555), (512, 1024), 1024)
        if i == offered // 10:
            at["bytes_after_a_tenth"] = process.memory_info().rss - before
    at["bytes"] = process.memory_info().rss - before
    at["entries"] = len(index)
    at["insert_us"] = 1e6 * (time.thread_time() - spent) / offered
    return at


def main() -> int:
    """Measures, prints and writes. Returns 1 where a promise does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=5000)
    parser.add_argument("--prefixes", type=int, default=10_000_000)
    parser.add_argument("--output", type=Path, default=Path("bench-results/decisions.json"))
    arguments = parser.parse_args()
    costs = [
        cost(nodes, size, arguments.decisions)
        for nodes in (4, 100, 1000)
        for size in (4096, 409_600)
    ]
    print("nodes  prompt bytes   mean us    p50 us    p99 us   slowest us")
    for each in costs:
        print(
            f"{each.nodes:5}  {each.prompt_bytes:12}  {each.mean:8.1f}  {each.p50:8.1f}"
            f"  {each.p99:8.1f}  {each.slowest:10.1f}"
        )
    memory = index_memory(arguments.prefixes)
    print(
        f"index: {memory['entries']:.0f} of at most {DEFAULT_MAX_ENTRIES} entries and "
        f"{memory['bytes'] / 1e6:.0f} MB after {arguments.prefixes} prefixes "
        f"({memory['bytes_after_a_tenth'] / 1e6:.0f} MB after a tenth of them), "
        f"{memory['insert_us']:.1f} us each"
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    found = {"decisions": [asdict(each) for each in costs], "index": memory}
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    print(f"written to {arguments.output}")
    return 0 if all(claims(costs, memory)) else 1


def claims(costs: Sequence[Cost], memory: dict[str, float]) -> list[bool]:
    """Prints what is promised of decisions, and returns whether each promise holds."""
    by = {(each.nodes, each.prompt_bytes): each for each in costs}
    small, long = by[4, 4096], by[4, 409_600]
    promised = [
        (f"4 nodes, 4 KB prompt: {small.mean:.0f} us, at most 300", small.mean <= 300),
        (
            f"1,000 nodes, p99: {by[1000, 4096].p99:.0f} us, at most 1,000",
            by[1000, 4096].p99 <= 1000,
        ),
        (
            f"400 KB prompt: {long.mean / small.mean:.2f} times a 4 KB one, at most 2",
            long.mean <= 2 * small.mean,
        ),
        ("the index keeps to its bound", memory["entries"] <= DEFAULT_MAX_ENTRIES),
        (
            "its memory does not grow once it is full",
            memory["bytes"] <= 1.1 * memory["bytes_after_a_tenth"] + 1e6,
        ),
    ]
    for text, holds in promised:
        print(f"{'yes' if holds else 'NO '}  {text}")
    return [holds for _, holds in promised]


if __name__ == "__main__":
    sys.exit(main())
