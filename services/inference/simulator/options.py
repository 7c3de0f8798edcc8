"""What one simulated engine is like."""

from dataclasses import dataclass

MAX_ANSWER_TOKENS = 8192
MAX_ADAPTERS = 64


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """One engine. Rates of 0 mean "at once": such an engine costs next to nothing.

    Attributes:
        model: The name of the base model.
        adapters: Names of LoRA adapters that are there from the start.
        prefill_rate: Prompt tokens per second; one prompt after the other.
        decode_rate: Tokens per second of a sequence that is alone.
        decode_slowdown: Each further sequence makes a step longer by this share.
        decode_in_prefill: The decode rate during a prefill, as a share of the rate without.
        slots: Sequences that run at the same time at most.
        max_queue: Sequences that wait at most; further ones are refused with 503.
        block_tokens: Tokens of a block of the key-value cache.
        blocks: Blocks of the cache; 0 for memory without end that remembers nothing.
        answer_tokens: Tokens of an answer that the caller does not limit.
        chunk_interval_s: Streams get a chunk this often at most, with as many tokens as are due;
            0 for a chunk a token.
        context_tokens: The longest prompt and answer together.
        by_priority: Whether the queue goes by the request's `priority`, lower first.
        embeds: Whether it serves vectors and no answers, as servers do whose model is for that.
        dimensions: The length of embedding vectors.
        is_stamped: Whether a stream's chunks say when they left, in microseconds of the system's
            monotonic clock, instead of words.
    """

    model: str = "sim"
    adapters: tuple[str, ...] = ()
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    decode_slowdown: float = 0.02
    decode_in_prefill: float = 0.7
    slots: int = 256
    max_queue: int = 10_000
    block_tokens: int = 16
    blocks: int = 0
    answer_tokens: int = 64
    chunk_interval_s: float = 0.02
    context_tokens: int = 131_072
    by_priority: bool = False
    embeds: bool = False
    dimensions: int = 384
    is_stamped: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: A value is out of range.
        """
        for name, low, high in (
            ("prefill_rate", 0.0, 1e9),
            ("decode_rate", 0.0, 1e6),
            ("decode_slowdown", 0.0, 10.0),
            ("decode_in_prefill", 0.01, 1.0),
            ("slots", 1, 4096),
            ("max_queue", 0, 1_000_000),
            ("block_tokens", 1, 1024),
            ("blocks", 0, 10_000_000),
            ("answer_tokens", 1, MAX_ANSWER_TOKENS),
            ("chunk_interval_s", 0.0, 10.0),
            ("context_tokens", 1, 10_000_000),
            ("dimensions", 1, 8192),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be from {low} to {high}")
        if not self.model or len(self.adapters) > MAX_ADAPTERS:
            raise ValueError(f"there must be a model, and {MAX_ADAPTERS} adapters at most")

    @property
    def longest(self) -> int:
        """The most tokens that one sequence may have, its answer included."""
        if not self.blocks:
            return self.context_tokens
        return min(self.context_tokens, self.blocks * self.block_tokens)
