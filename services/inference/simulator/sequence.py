"""One request on its way through a simulated engine."""

from enum import Enum, auto
from typing import Protocol

from services.inference.simulator.kv_cache import Lease
from services.inference.simulator.timers import Handle


class Sink(Protocol):
    """Where an answer goes."""

    def emit(self, start: int, end: int) -> None:
        """Takes the tokens from `start` up to `end`; called for streams only."""
        ...

    def finish(self, prompt: int, tokens: int, cached: int) -> None:
        """Takes the end of an answer, and what it took."""
        ...

    def abort(self) -> None:
        """Closes the connection at once."""
        ...


class Place(Enum):
    """Where in the engine a sequence is."""

    OUT = auto()
    """Not in it, or not any more."""
    WAITING = auto()
    """In the queue; in all places that follow it has a slot."""
    PREFILLING = auto()
    """Its prompt is computed."""
    DECODING = auto()
    """It gets its tokens from the decoder."""
    SPILLING = auto()
    """It gets a token each turn of the event loop."""
    STUCK = auto()
    """A fault holds it."""


class Sequence:
    """A prompt and the answer to it.

    Attributes:
        sink: Where the answer goes.
        model: Which model answers.
        text: The prompt; empty where it is neither remembered nor looked for.
        prompt_tokens: The prompt's length.
        answer_tokens: The answer's length; 0 for one that is done with its prefill.
        is_stream: Whether tokens are wanted as they come.
        priority: Lower goes first, where the engine looks at it.
        cached: Prompt tokens that were in the cache.
        emitted: Tokens of the answer that the sink has.
        began: The decoder's token clock when the first token was there.
        hashes: The prompt's full blocks, once they have been looked for.
        lease: The blocks, while it runs.
        handle: Its next step, where it has one of its own.
        place: Where in the engine it is.
    """

    __slots__ = (
        "answer_tokens",
        "began",
        "cached",
        "emitted",
        "handle",
        "hashes",
        "is_stream",
        "lease",
        "model",
        "place",
        "priority",
        "prompt_tokens",
        "sink",
        "text",
    )

    def __init__(
        self,
        sink: Sink,
        *,
        model: str,
        text: str,
        prompt_tokens: int,
        answer_tokens: int,
        is_stream: bool,
        priority: int = 0,
    ) -> None:
        self.sink = sink
        self.model = model
        self.text = text
        self.prompt_tokens = prompt_tokens
        self.answer_tokens = answer_tokens
        self.is_stream = is_stream
        self.priority = priority
        self.cached = 0
        self.emitted = 0
        self.began = 0.0
        self.hashes: list[int] = []
        self.lease: Lease | None = None
        self.handle: Handle | None = None
        self.place = Place.OUT
