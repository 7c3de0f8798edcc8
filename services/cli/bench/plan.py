"""What a run asks, when, and until when."""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass

MAX_CALLS = 1_000_000
"""Calls of one run at most: what is known of each is kept to its end."""


@dataclass(frozen=True)
class Plan:
    """The settings of a run.

    Attributes:
        model: Whom to ask.
        rate: Calls per second that begin; None for callers who wait for their answers.
        is_even: Whether they begin evenly spread, else at random (a Poisson process).
        concurrency: Callers; with a rate, the most calls at a time.
        duration_s: How long calls begin, in seconds; None for as many as `requests` says.
        requests: How many calls begin at most; None for as many as there is time for.
        prompt_tokens: The length of prompts, about.
        output_tokens: The most tokens of an answer.
        shared: Which share of a prompt all of them begin with, 0 to 1.
        is_stream: Whether answers come in pieces.
        timeout_s: When a call has failed, counted from when it was meant to begin.
        warmup: Calls before the first that counts.
        seed: What chance begins with.
        slo_ttft_ms: The longest good time to first token; None for any.
        slo_itl_ms: The longest good time per output token; None for any.
        prompts: The file that the prompts are from; none for made ones.
        body: Further fields of each call.
    """

    model: str
    rate: float | None = None
    is_even: bool = False
    concurrency: int = 8
    duration_s: float | None = None
    requests: int | None = None
    prompt_tokens: int = 256
    output_tokens: int = 64
    shared: float = 0.0
    is_stream: bool = True
    timeout_s: float = 120.0
    warmup: int = 2
    seed: int = 0
    slo_ttft_ms: float | None = None
    slo_itl_ms: float | None = None
    prompts: str = ""
    body: str = ""

    @property
    def has_slo(self) -> bool:
        """Whether anything says which answers are good."""
        return self.slo_ttft_ms is not None or self.slo_itl_ms is not None

    @property
    def most_calls(self) -> int:
        """How many calls begin at most."""
        return MAX_CALLS if self.requests is None else min(self.requests, MAX_CALLS)

    def settings(self) -> dict[str, object]:
        """Returns the settings for a report."""
        return asdict(self)

    def beginnings(self) -> Iterator[float]:
        """Yields when calls are meant to begin, in seconds from the start of the run.

        Times between two calls of a Poisson process are exponentially distributed. A plan without
        a rate has none.
        """
        if self.rate is None:
            return
        chance = random.Random(self.seed)  # noqa: S311
        at = 0.0
        for number in range(self.most_calls):
            at = number / self.rate if self.is_even else at + chance.expovariate(self.rate)
            if self.duration_s is not None and at >= self.duration_s:
                return
            yield at
