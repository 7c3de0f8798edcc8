"""Gives all sequences that decode their tokens, by one timer for all of them.

A step gives each sequence a token and takes the longer the more there are:

    tokens per second and sequence = decode_rate / (1 + decode_slowdown * (sequences - 1)) * speed

The integral of that rate is the token clock: a sequence has its n-th token n - 1 ticks after its
first.
"""

import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from services.inference.simulator.options import EngineOptions
from services.inference.simulator.sequence import Sequence
from services.inference.simulator.timers import Handle, Timers

# Event loops keep time in milliseconds; a timer that is early by less is on time.
_EARLY_TOKENS = 0.05
_MAX_DEAD_ENTRIES = 1024


class Decoder:
    """The sequences whose prompts are computed.

    Args:
        options: What the engine is like; its `decode_rate` is not 0.
        timers: The event loop.
        emit: Called with a stream and the number of tokens that it has by now.
        done: Called with a sequence that has all its tokens, which by then has left.
    """

    def __init__(
        self,
        options: EngineOptions,
        timers: Timers,
        emit: Callable[[Sequence, int], None],
        done: Callable[[Sequence], None],
    ) -> None:
        self._options = options
        self._timers = timers
        self._emit = emit
        self._done = done
        self._speed = 1.0
        self._clock = 0.0
        self._clock_at = 0.0
        self._rate = 0.0
        self._last_chunk = 0.0
        self._timer: Handle | None = None
        self._sequences: dict[Sequence, None] = {}
        self._streams = 0
        self._ends: list[tuple[float, int, Sequence]] = []
        self._number = 0

    def set_speed(self, speed: float) -> None:
        """Changes the factor of the rate from now on."""
        if speed != self._speed:
            self._move_clock()
            self._speed = speed
            self._rearm()

    def add(self, sequence: Sequence) -> None:
        """Takes a sequence whose first token is there now."""
        self._move_clock()
        if not self._sequences:
            self._clock = self._last_chunk = 0.0
            self._ends.clear()
        sequence.began = self._clock
        self._sequences[sequence] = None
        self._streams += sequence.is_stream
        self._number += 1
        heappush(self._ends, (self._clock + sequence.answer_tokens - 1, self._number, sequence))
        if sequence.is_stream:
            self._emit(sequence, 1)
        self._rearm()

    def remove(self, sequence: Sequence) -> None:
        """Lets a sequence go before its end."""
        self._move_clock()
        self._drop(sequence)
        self._rearm()

    def _drop(self, sequence: Sequence) -> None:
        del self._sequences[sequence]
        self._streams -= sequence.is_stream
        if len(self._ends) > 2 * len(self._sequences) + _MAX_DEAD_ENTRIES:
            # Of those that went before their end.
            self._ends = [each for each in self._ends if each[2] in self._sequences]
            heapify(self._ends)

    def _move_clock(self) -> None:
        now = self._timers.time()
        self._clock += (now - self._clock_at) * self._rate
        self._clock_at = now

    def _rearm(self) -> None:
        """Sets the timer to the next moment at which something is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        count = len(self._sequences)
        if not count:
            self._rate = 0.0
            return
        options = self._options
        slowdown = 1.0 + options.decode_slowdown * (count - 1)
        self._rate = options.decode_rate / slowdown * self._speed
        while self._ends[0][2] not in self._sequences:
            heappop(self._ends)
        due = self._ends[0][0]
        if self._streams:
            tokens = max(1, math.ceil(self._rate * options.chunk_interval_s - 1e-9))
            due = min(due, self._last_chunk + tokens)
        delay_s = max((due - self._clock) / self._rate, 0.0)
        self._timer = self._timers.call_later(delay_s, self._step)

    def _step(self) -> None:
        self._timer = None
        self._move_clock()
        reached = self._clock + _EARLY_TOKENS
        while self._ends and self._ends[0][0] <= reached:
            sequence = self._ends[0][2]
            heappop(self._ends)
            if sequence not in self._sequences:
                continue
            if sequence.is_stream:
                self._emit(sequence, sequence.answer_tokens)
            if sequence in self._sequences:
                self._drop(sequence)
                self._done(sequence)
        if self._streams:
            for sequence in list(self._sequences):
                if sequence.is_stream:
                    self._emit(sequence, int(reached - sequence.began) + 1)
            self._last_chunk = float(int(reached))
        self._rearm()
