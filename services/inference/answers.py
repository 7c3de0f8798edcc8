"""What the node's own answers say of its engine: speed, first tokens, and what caches held."""

import time
from collections import deque
from collections.abc import Callable

from services.inference.engines.dialect import Tokens

_FIRST_TOKEN_WEIGHT = 0.2
_RATE_WINDOW_S = 5.0
_MAX_ENTRIES = 4096


class Answers:
    """Sums and averages over the answers of this process.

    The time to the first token is an exponentially weighted moving average: each answer counts
    for a fifth, all earlier ones together for the rest.

    Args:
        clock: A monotonic clock in seconds.

    Attributes:
        time_to_first_token_s: The moving average; None before the first answer.
        expected_cached_tokens: Prompt tokens that routing expected in the prefix cache, over all
            answers whose engine told how many were; None before the first of them.
        cached_tokens: Prompt tokens that were in the cache, over the same answers.
        prompt_tokens: Prompt tokens over the same answers.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._completions: deque[tuple[float, int]] = deque()
        self.time_to_first_token_s: float | None = None
        self.expected_cached_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.prompt_tokens: int | None = None

    def note(
        self,
        tokens: Tokens,
        *,
        time_to_first_token_s: float | None = None,
        expected_share: float | None = None,
    ) -> None:
        """Takes in an answer that ended well.

        Args:
            tokens: What it took.
            time_to_first_token_s: Seconds to its first content; None where it came in one piece.
            expected_share: Which share of the prompt routing expected in the cache, 0 to 1; None
                where routing said nothing.
        """
        if time_to_first_token_s is not None:
            before = self.time_to_first_token_s
            self.time_to_first_token_s = (
                time_to_first_token_s
                if before is None
                else before + _FIRST_TOKEN_WEIGHT * (time_to_first_token_s - before)
            )
        if tokens.completion:
            if len(self._completions) == _MAX_ENTRIES:
                # Entries are for the rate alone: two of one moment are as good as one.
                at, count = self._completions.pop()
                self._completions.append((at, count + tokens.completion))
            else:
                self._completions.append((self._clock(), tokens.completion))
        if tokens.cached is None or tokens.prompt is None or expected_share is None:
            return
        expected = round(min(max(expected_share, 0.0), 1.0) * tokens.prompt)
        self.expected_cached_tokens = (self.expected_cached_tokens or 0) + expected
        # An engine may count a token more than the prompt has.
        self.cached_tokens = (self.cached_tokens or 0) + min(tokens.cached, tokens.prompt)
        self.prompt_tokens = (self.prompt_tokens or 0) + tokens.prompt

    def tokens_per_second(self) -> float:
        """Returns the tokens that answers of the last 5 s brought, per second."""
        now = self._clock()
        while self._completions and self._completions[0][0] <= now - _RATE_WINDOW_S:
            self._completions.popleft()
        window_s = min(_RATE_WINDOW_S, max(now - self._since, 1.0))
        return sum(count for _, count in self._completions) / window_s
