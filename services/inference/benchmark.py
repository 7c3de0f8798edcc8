"""Puts load on the node's own engine and says how fast it is."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from infermesh.registry.v1 import node_service_pb2 as pb
from services.inference import requests
from services.inference.relay import Relay
from services.kit.caller import Caller
from services.kit.errors import MeshError

_REQUESTS = 32
_CONCURRENCY = 4
_PROMPT_TOKENS = 128
_OUTPUT_TOKENS = 64
_PROGRESS_INTERVAL_S = 0.5
_MAX_FAILURE_CHARS = 200

# Each is one token with the common vocabularies, with the blank before it.
_WORDS = (
    "the",
    "and",
    "for",
    "but",
    "not",
    "you",
    "all",
    "any",
    "can",
    "had",
    "her",
    "was",
    "one",
    "our",
    "out",
    "day",
    "get",
    "has",
    "him",
    "his",
    "how",
    "man",
    "new",
    "now",
    "old",
    "see",
    "two",
    "way",
    "who",
    "did",
)

OnBenchmark = Callable[[pb.BenchmarkNodeResponse], None]


class Measured:
    """What the requests of one benchmark took, in seconds and tokens."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.first_tokens: list[float] = []
        self.prompt_tokens: int | None = 0
        self.output_tokens: int | None = 0
        self.failed = 0
        self.first_failure = ""

    def answered(
        self, latency: float, first: float | None, prompt: int | None, output: int | None
    ) -> None:
        """Takes in an answer; a count that one of them lacks is unknown for all."""
        self.latencies.append(latency)
        if first is not None:
            self.first_tokens.append(first)
        self.prompt_tokens = _sum(self.prompt_tokens, prompt)
        self.output_tokens = _sum(self.output_tokens, output)

    def refused(self, error: MeshError) -> None:
        """Takes in a failure."""
        self.failed += 1
        if not self.first_failure:
            self.first_failure = error.message[:_MAX_FAILURE_CHARS]

    def progress(self) -> pb.BenchmarkNodeResponse:
        """Returns how far it is."""
        return pb.BenchmarkNodeResponse(completed=len(self.latencies), failed=self.failed)

    def result(self, duration: float) -> pb.BenchmarkResult:
        """Returns what was found in so many seconds."""
        answered = len(self.latencies)
        result = pb.BenchmarkResult(
            duration=duration,
            requests_per_second=answered / duration,
            first_failure=self.first_failure,
        )
        if answered:
            result.latency.CopyFrom(percentiles(self.latencies))
            if self.prompt_tokens is not None:
                result.prompt_tokens = self.prompt_tokens
            if self.output_tokens is not None:
                result.output_tokens = self.output_tokens
                result.output_tokens_per_second = self.output_tokens / duration
        if self.first_tokens:
            result.time_to_first_token.CopyFrom(percentiles(self.first_tokens))
        return result


class EngineBenchmark:
    """Runs benchmarks through the relay, beside the requests of callers.

    Args:
        relay: The way to the engine.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, relay: Relay, clock: Callable[[], float] = time.monotonic) -> None:
        self._relay = relay
        self._clock = clock

    async def run(
        self, request: pb.BenchmarkNodeRequest, on_progress: OnBenchmark
    ) -> pb.BenchmarkNodeResponse:
        """Sends the requests, so many at a time, and returns the last message, with the result.

        Raises:
            MeshError: `MODEL_NOT_FOUND`, or the engine is not up.
        """
        self._relay.admit(_caller(), request.model)
        total = request.requests or _REQUESTS
        prompts = _prompts(request.prompt_tokens or _PROMPT_TOKENS, total)
        measured = Measured()
        told_at = began = self._clock()

        async def work() -> None:
            nonlocal told_at
            for prompt in prompts:
                await self._one(request, prompt, measured)
                if self._clock() - told_at >= _PROGRESS_INTERVAL_S:
                    told_at = self._clock()
                    on_progress(measured.progress())

        async with asyncio.TaskGroup() as group:
            for _ in range(min(request.concurrency or _CONCURRENCY, total)):
                group.create_task(work())
        last = measured.progress()
        last.result.CopyFrom(measured.result(max(self._clock() - began, 1e-9)))
        return last

    async def _one(self, request: pb.BenchmarkNodeRequest, prompt: str, measured: Measured) -> None:
        body = orjson.dumps(
            {
                "model": request.model,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": request.output_tokens or _OUTPUT_TOKENS,
                "temperature": 0,
                "stream": True,
            }
        )
        began = self._clock()
        first: float | None = None

        async def on_objects(objects: list[dict[str, Any]]) -> None:
            nonlocal first
            if first is None and any(map(_has_content, objects)):
                first = self._clock() - began

        try:
            tokens, _ = await self._relay.stream_parsed(
                _caller(), requests.parse("chat", body), on_objects
            )
        except MeshError as error:
            measured.refused(error)
            return
        prompt_tokens = output_tokens = None
        if tokens is not None:
            prompt_tokens, output_tokens = tokens.prompt, tokens.completion
        measured.answered(self._clock() - began, first, prompt_tokens, output_tokens)


def percentiles(values: Sequence[float]) -> pb.Percentiles:
    """Returns the percentiles of values by nearest rank: the ⌈p·n⌉-th smallest of n."""
    ranked = sorted(values)

    def rank(percent: int) -> float:
        return ranked[-(-percent * len(ranked) // 100) - 1]

    return pb.Percentiles(p50=rank(50), p95=rank(95), p99=rank(99))


def _prompts(words: int, count: int) -> Iterator[str]:
    """Yields prompts of so many words, all different from their first word on."""
    for number in range(count):
        source = random.Random(number)  # noqa: S311 - the same load each time, not a secret
        yield f"{number} " + " ".join(source.choices(_WORDS, k=words))


def _has_content(data: dict[str, Any]) -> bool:
    choices = data.get("choices")
    if not isinstance(choices, list):
        return False
    deltas = (choice.get("delta") for choice in choices if isinstance(choice, dict))
    return any(
        isinstance(delta, dict) and (delta.get("content") or delta.get("reasoning_content"))
        for delta in deltas
    )


def _sum(total: int | None, count: int | None) -> int | None:
    return None if total is None or count is None else total + count


def _caller() -> Caller:
    # Without a key, so that it is not accounted.
    return Caller(request_id="benchmark", attempt=1, tenant="", key_id="", model="")
