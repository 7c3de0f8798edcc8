"""The engine itself: who waits, who has a slot, whose prompt is computed.

Prompts are prefilled one after the other at a fixed rate, as they are where a scheduler gives its
budget of tokens to the oldest first. What the cache holds of a prompt is not computed again.
"""

from functools import partial

from services.inference.simulator.answers import answer_text
from services.inference.simulator.decoder import Decoder
from services.inference.simulator.faults import Faults
from services.inference.simulator.kv_cache import KvCache
from services.inference.simulator.options import EngineOptions
from services.inference.simulator.prompt import chain
from services.inference.simulator.sequence import Place, Sequence
from services.inference.simulator.timers import Timers
from services.inference.simulator.waiting import Waiting


class QueueFullError(Exception):
    """As many sequences wait as may."""


class Engine:
    """A simulated engine.

    Args:
        options: What it is like.
        timers: The event loop.

    Attributes:
        faults: What goes wrong now.
        cache: Its key-value cache, where it has one.
        running: Sequences that have a slot.
        prompt_tokens: All prompt tokens that were answered.
        answer_tokens: All tokens of answers.
        answered: Sequences that ended well.
        looked_up: Prompt tokens that were looked for in the cache.
        found: Prompt tokens that were in it.
    """

    def __init__(self, options: EngineOptions, timers: Timers) -> None:
        self.options = options
        self.faults = Faults()
        self.cache = KvCache(options.blocks) if options.blocks else None
        self.running = 0
        self.prompt_tokens = 0
        self.answer_tokens = 0
        self.answered = 0
        self.looked_up = 0
        self.found = 0
        self._timers = timers
        self._waiting = Waiting(by_priority=options.by_priority)
        self._is_admitting = False
        self._prefilling: Sequence | None = None
        self._prefill_began = 0.0
        self._decoder = Decoder(options, timers, self._emit, self._decoded)
        self._users: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._waiting)

    def running_models(self) -> list[str]:
        """Returns the models of the sequences that have a slot."""
        return list(self._users)

    def waiting_models(self) -> list[str]:
        """Returns the models of the sequences that wait."""
        return self._waiting.models()

    def set_faults(self, faults: Faults) -> None:
        """Changes what goes wrong; a prefill that runs keeps its time."""
        self.faults = faults
        self._set_speed()

    def submit(self, sequence: Sequence) -> None:
        """Takes a sequence in.

        Raises:
            QueueFullError: Too many wait already.
        """
        if self.faults.hang:
            sequence.place = Place.STUCK
            self._enter(sequence)
            return
        is_next = not (self._waiting or self._prefilling is not None or self._is_admitting)
        if is_next and self._has_room(sequence):
            self._begin(sequence)
            return
        if len(self._waiting) >= self.options.max_queue:
            raise QueueFullError
        sequence.place = Place.WAITING
        self._waiting.add(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Stops a sequence wherever it is; its slot and its blocks are free at once."""
        place = sequence.place
        if place is Place.OUT:
            return
        if place is Place.WAITING:
            sequence.place = Place.OUT
            self._waiting.remove(sequence)
        else:
            if sequence.handle is not None:
                sequence.handle.cancel()
            if place is Place.PREFILLING:
                self._stop_prefill(sequence)
            elif place is Place.DECODING:
                self._decoder.remove(sequence)
            self._leave(sequence)
        self._admit()

    def _set_speed(self) -> None:
        share = 1.0 if self._prefilling is None else self.options.decode_in_prefill
        self._decoder.set_speed(share / self.faults.slow)

    # The way in.

    def _admit(self) -> None:
        if self._is_admitting:
            return
        self._is_admitting = True
        try:
            while self._waiting and self._prefilling is None:
                # As in vLLM, one that finds no room keeps those behind it waiting.
                sequence = self._waiting.first()
                if not self._has_room(sequence):
                    break
                self._waiting.remove(sequence)
                self._begin(sequence)
        finally:
            self._is_admitting = False

    def _has_room(self, sequence: Sequence) -> bool:
        """Says whether there is a slot, and takes the blocks."""
        if self.running >= self.options.slots:
            return False
        # What ends with its prefill leaves nothing behind: texts go through one by one, so that
        # many of them need no more room than one.
        if self.cache is None or not sequence.answer_tokens:
            return True
        size = self.options.block_tokens
        if sequence.text and not sequence.hashes:
            sequence.hashes = chain(hash(sequence.model), sequence.text, size)
        blocks = -(-(sequence.prompt_tokens + sequence.answer_tokens) // size)
        # The last token of a prompt is always computed: the answer's first comes from it.
        limit = max(sequence.prompt_tokens - 1, 0) // size
        sequence.lease = self.cache.take(sequence.hashes, blocks, limit)
        return sequence.lease is not None

    def _enter(self, sequence: Sequence) -> None:
        self.running += 1
        self._users[sequence.model] = self._users.get(sequence.model, 0) + 1

    def _begin(self, sequence: Sequence) -> None:
        self._enter(sequence)
        if sequence.lease is not None and sequence.text:
            sequence.cached = sequence.lease.matched * self.options.block_tokens
            self.looked_up += sequence.prompt_tokens
            self.found += sequence.cached
        if not self.options.prefill_rate:
            self._answer(sequence)
            return
        sequence.place = Place.PREFILLING
        self._prefilling = sequence
        self._prefill_began = self._timers.time()
        tokens = sequence.prompt_tokens - sequence.cached
        delay_s = tokens / self.options.prefill_rate * self.faults.slow
        sequence.handle = self._timers.call_later(delay_s, partial(self._prefilled, sequence))
        self._set_speed()

    def _prefilled(self, sequence: Sequence) -> None:
        sequence.handle = None
        self._prefilling = None
        self._answer(sequence)
        self._admit()
        self._set_speed()

    def _stop_prefill(self, sequence: Sequence) -> None:
        self._prefilling = None
        if sequence.lease is not None and self.cache is not None:
            # What is computed is computed, though nobody waits for it any more.
            spent_s = (self._timers.time() - self._prefill_began) / self.faults.slow
            tokens = sequence.cached + spent_s * self.options.prefill_rate
            blocks = min(int(tokens / self.options.block_tokens), len(sequence.hashes))
            self.cache.publish(sequence.lease, blocks)
        self._set_speed()

    # The answer.

    def _answer(self, sequence: Sequence) -> None:
        if sequence.lease is not None and self.cache is not None:
            self.cache.publish(sequence.lease, len(sequence.hashes))
        if not sequence.answer_tokens:
            self._finish(sequence)
        elif self.options.decode_rate:
            sequence.place = Place.DECODING
            self._decoder.add(sequence)
        elif sequence.is_stream:
            sequence.place = Place.SPILLING
            sequence.handle = self._timers.call_soon(partial(self._spill, sequence))
        else:
            self._finish(sequence)

    def _spill(self, sequence: Sequence) -> None:
        """Gives a stream its next token where tokens need no time."""
        self._emit(sequence, sequence.emitted + 1)
        if sequence.place is not Place.SPILLING:
            return
        if sequence.emitted < sequence.answer_tokens:
            sequence.handle = self._timers.call_soon(partial(self._spill, sequence))
        else:
            self._decoded(sequence)

    def _emit(self, sequence: Sequence, upto: int) -> None:
        start, end = sequence.emitted, upto
        stall, drop = self.faults.stall_after, self.faults.drop_after
        if stall is not None:
            end = min(end, max(stall, start))
        if drop is not None:
            end = min(end, max(drop, start))
        if end > start:
            sequence.emitted = end
            sequence.sink.emit(start, end)
        if end < upto:
            if sequence.place is Place.DECODING:
                self._decoder.remove(sequence)
            sequence.handle = None
            sequence.place = Place.STUCK
            if end == drop:
                # The loss of its connection then takes it out, as every hang-up does.
                sequence.sink.abort()

    def _decoded(self, sequence: Sequence) -> None:
        self._finish(sequence)
        self._admit()

    # The way out.

    def _finish(self, sequence: Sequence) -> None:
        self.answered += 1
        self.prompt_tokens += sequence.prompt_tokens
        self.answer_tokens += sequence.answer_tokens
        answer = []
        if sequence.lease is not None and sequence.text:
            # The next turn of this chat begins with prompt and answer.
            hashes = sequence.hashes
            size = self.options.block_tokens
            seed = hashes[-1] if hashes else hash(sequence.model)
            text = sequence.text + answer_text(sequence.answer_tokens)
            answer = chain(seed, text, size, after=len(hashes))
        self._leave(sequence, answer)
        sequence.sink.finish(sequence.prompt_tokens, sequence.answer_tokens, sequence.cached)

    def _leave(self, sequence: Sequence, answer: list[int] | None = None) -> None:
        sequence.place = Place.OUT
        sequence.handle = None
        self.running -= 1
        left = self._users[sequence.model] - 1
        if left:
            self._users[sequence.model] = left
        else:
            del self._users[sequence.model]
        lease, sequence.lease = sequence.lease, None
        if lease is not None and self.cache is not None:
            self.cache.release(lease, answer or ())
