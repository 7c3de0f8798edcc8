"""How the simulated engine spends its time."""

import pytest

from services.inference.simulator.engine import Engine, QueueFullError
from services.inference.simulator.faults import Faults, Share, faults_of
from services.inference.simulator.options import EngineOptions
from services.inference.simulator.sequence import Sequence
from simulated_time import SimulatedTime


class Heard:
    """A sink that remembers when what came."""

    def __init__(self, time: SimulatedTime) -> None:
        self._time = time
        self.tokens: list[tuple[float, int]] = []
        self.end: float | None = None
        self.cached = 0
        self.is_aborted = False

    def emit(self, start: int, end: int) -> None:
        assert start == (self.tokens[-1][1] if self.tokens else 0)
        assert end > start
        self.tokens.append((self._time.now, end))

    def finish(self, prompt: int, tokens: int, cached: int) -> None:
        assert self.end is None
        self.end = self._time.now
        self.cached = cached

    def abort(self) -> None:
        self.is_aborted = True


class Rig:
    """An engine, its clock, and what it said."""

    def __init__(self, **options: object) -> None:
        self.time = SimulatedTime()
        values = {
            "prefill_rate": 1000.0,
            "decode_rate": 100.0,
            "decode_slowdown": 0.0,
            "decode_in_prefill": 1.0,
            "chunk_interval_s": 0.0,
            **options,
        }
        self.engine = Engine(EngineOptions(**values), self.time)  # type: ignore[arg-type]

    def ask(
        self,
        prompt: int = 100,
        answer: int = 10,
        *,
        text: str = "",
        is_stream: bool = True,
        priority: int = 0,
        model: str = "sim",
    ) -> tuple[Sequence, Heard]:
        heard = Heard(self.time)
        sequence = Sequence(
            heard,
            model=model,
            text=text,
            prompt_tokens=-(-len(text) // 4) if text else prompt,
            answer_tokens=answer,
            is_stream=is_stream,
            priority=priority,
        )
        self.engine.submit(sequence)
        return sequence, heard


def test_the_first_token_comes_with_the_end_of_the_prefill() -> None:
    rig = Rig()
    _, heard = rig.ask(prompt=500, answer=3)
    rig.time.until(0.499)
    assert not heard.tokens
    rig.time.until(10)
    assert [at for at, _ in heard.tokens] == pytest.approx([0.5, 0.51, 0.52])
    assert heard.end == pytest.approx(0.52)
    assert rig.engine.running == 0
    assert rig.time.pending == 0


def test_prompts_share_the_prefill_one_after_the_other() -> None:
    rig = Rig()
    heard = [rig.ask(prompt=100, answer=1)[1] for _ in range(3)]
    assert (rig.engine.running, rig.engine.waiting) == (1, 2)
    rig.time.until(10)
    assert [each.end for each in heard] == pytest.approx([0.1, 0.2, 0.3])


def test_more_sequences_make_each_slower() -> None:
    def end_of_all(count: int) -> float:
        rig = Rig(prefill_rate=0.0, decode_slowdown=0.5)
        heard = [rig.ask(answer=101, is_stream=False)[1] for _ in range(count)]
        rig.time.until(100)
        assert heard[0].end is not None
        return heard[0].end

    assert end_of_all(1) == pytest.approx(1.0)
    assert end_of_all(3) == pytest.approx(2.0)


def test_a_sequence_that_ends_speeds_up_the_others() -> None:
    rig = Rig(prefill_rate=0.0, decode_slowdown=1.0)
    _, long = rig.ask(answer=101)
    rig.ask(answer=51)
    rig.time.until(100)
    # 50 tokens at half the rate, 50 at the full one.
    assert long.end == pytest.approx(1.5)


def test_decoding_is_slower_while_a_prompt_is_computed() -> None:
    rig = Rig(decode_in_prefill=0.5)
    _, heard = rig.ask(prompt=0, answer=101, is_stream=False)
    rig.time.until(0)
    rig.ask(prompt=1000, answer=1)
    rig.time.until(100)
    assert heard.end == pytest.approx(1.5)


def test_a_chunk_carries_what_is_due_since_the_last() -> None:
    rig = Rig(prefill_rate=0.0, chunk_interval_s=0.1)
    _, heard = rig.ask(answer=35)
    rig.time.until(100)
    assert [upto for _, upto in heard.tokens] == [1, 11, 21, 31, 35]
    assert heard.end == pytest.approx(0.34)


def test_slots_bound_what_runs_and_the_queue_goes_in_order() -> None:
    rig = Rig(prefill_rate=0.0, slots=2)
    heard = [rig.ask(answer=101, is_stream=False)[1] for _ in range(4)]
    assert (rig.engine.running, rig.engine.waiting) == (2, 2)
    rig.time.until(100)
    assert [each.end for each in heard] == pytest.approx([1.0, 1.0, 2.0, 2.0])


def test_the_queue_is_bounded() -> None:
    rig = Rig(slots=1, max_queue=1)
    rig.ask()
    rig.ask()
    with pytest.raises(QueueFullError):
        rig.ask()
    assert (rig.engine.running, rig.engine.waiting) == (1, 1)


def test_priorities_go_first_where_the_engine_looks_at_them() -> None:
    def order(*, by_priority: bool) -> list[int]:
        rig = Rig(slots=1, by_priority=by_priority)
        rig.ask(answer=1)
        heard = {p: rig.ask(answer=1, priority=p)[1] for p in (5, -1, 0)}
        rig.time.until(100)
        return sorted(heard, key=lambda p: heard[p].end or 0.0)

    assert order(by_priority=True) == [-1, 0, 5]
    assert order(by_priority=False) == [5, -1, 0]


def test_a_known_prefix_is_not_computed_again() -> None:
    rig = Rig(blocks=1000)
    shared = "s" * 4000
    _, cold = rig.ask(text=shared + "a" * 400, answer=1)
    rig.time.until(10)
    _, warm = rig.ask(text=shared + "b" * 400, answer=1)
    rig.time.until(20)
    assert cold.end == pytest.approx(1.1)
    # 62 whole blocks of 16 tokens are in the shared text.
    assert (cold.cached, warm.cached) == (0, 992)
    assert warm.end == pytest.approx(10 + 0.108)
    assert (rig.engine.looked_up, rig.engine.found) == (2200, 992)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    rig = Rig(blocks=1000)
    rig.ask(text="s" * 640, answer=1)
    rig.time.until(10)
    _, again = rig.ask(text="s" * 640, answer=1)
    rig.time.until(20)
    assert again.cached == 144


def test_the_next_turn_finds_prompt_and_answer() -> None:
    from services.inference.simulator.answers import answer_text

    rig = Rig(blocks=1000)
    text = "q" * 400
    rig.ask(text=text, answer=60)
    rig.time.until(10)
    _, turn = rig.ask(text=text + answer_text(60) + "more", answer=1)
    rig.time.until(20)
    assert turn.cached == 160


def test_adapters_do_not_share_prefixes() -> None:
    rig = Rig(blocks=1000)
    rig.ask(text="s" * 4000, answer=1, model="a")
    rig.time.until(10)
    _, other = rig.ask(text="s" * 4000, answer=1, model="b")
    rig.time.until(20)
    assert other.cached == 0


def test_a_sequence_waits_for_memory() -> None:
    rig = Rig(blocks=10)
    _, first = rig.ask(prompt=100, answer=11)
    _, second = rig.ask(prompt=100, answer=11)
    rig.time.until(0.15)
    assert (rig.engine.running, rig.engine.waiting) == (1, 1)
    rig.time.until(10)
    assert first.end == pytest.approx(0.2)
    assert second.end == pytest.approx(0.4)


@pytest.mark.parametrize("moment", [0.05, 0.15, 0.9])
def test_a_cancelled_sequence_frees_its_slot_at_once(moment: float) -> None:
    rig = Rig(slots=1, blocks=100)
    sequence, heard = rig.ask(prompt=100, answer=1000)
    _, next_one = rig.ask(prompt=100, answer=1)
    rig.time.until(moment)
    rig.engine.cancel(sequence)
    rig.engine.cancel(sequence)
    assert rig.engine.running == 1
    rig.time.until(20)
    assert heard.end is None
    assert next_one.end == pytest.approx(moment + 0.1)
    assert rig.engine.cache is not None
    assert (rig.engine.running, rig.engine.cache.use) == (0, 0.0)
    assert rig.time.pending == 0


def test_a_cancelled_sequence_leaves_the_queue() -> None:
    rig = Rig(slots=1)
    rig.ask(answer=1)
    waits, heard = rig.ask()
    rig.engine.cancel(waits)
    assert rig.engine.waiting == 0
    rig.time.until(20)
    assert heard.end is None


def test_what_a_cancelled_prefill_computed_stays() -> None:
    rig = Rig(blocks=1000)
    sequence, _ = rig.ask(text="s" * 4000, answer=1)
    rig.time.until(0.5)
    rig.engine.cancel(sequence)
    _, again = rig.ask(text="s" * 4000, answer=1)
    rig.time.until(20)
    assert again.cached == 496


def test_an_engine_without_rates_answers_at_once() -> None:
    rig = Rig(prefill_rate=0.0, decode_rate=0.0)
    _, whole = rig.ask(answer=64, is_stream=False)
    assert whole.end == 0.0
    _, stream = rig.ask(answer=3)
    assert not stream.tokens
    rig.time.until(0.0)
    assert stream.tokens == [(0.0, 1), (0.0, 2), (0.0, 3)]
    assert stream.end == 0.0


def test_a_cancelled_stream_without_rates_says_no_more() -> None:
    rig = Rig(prefill_rate=0.0, decode_rate=0.0)
    sequence, heard = rig.ask(answer=3)
    rig.engine.cancel(sequence)
    rig.time.until(1.0)
    assert heard.tokens == []
    assert rig.engine.running == 0


def test_slowness_stretches_prefill_and_decode() -> None:
    rig = Rig()
    rig.engine.set_faults(Faults(slow=3.0))
    _, heard = rig.ask(prompt=100, answer=11)
    rig.time.until(100)
    assert heard.tokens[0][0] == pytest.approx(0.3)
    assert heard.end == pytest.approx(0.6)


def test_slowness_reaches_what_already_decodes() -> None:
    rig = Rig(prefill_rate=0.0)
    _, heard = rig.ask(answer=101, is_stream=False)
    rig.time.until(0.5)
    rig.engine.set_faults(Faults(slow=2.0))
    rig.time.until(100)
    assert heard.end == pytest.approx(1.5)


@pytest.mark.parametrize("rate", [0.0, 100.0])
def test_a_stalled_stream_keeps_its_slot_until_its_caller_goes(rate: float) -> None:
    rig = Rig(prefill_rate=0.0, decode_rate=rate)
    rig.engine.set_faults(Faults(stall_after=2))
    sequence, heard = rig.ask(answer=5)
    rig.time.until(10)
    assert [upto for _, upto in heard.tokens][-1] == 2
    assert (heard.end, rig.engine.running) == (None, 1)
    rig.engine.cancel(sequence)
    assert rig.engine.running == 0


@pytest.mark.parametrize("rate", [0.0, 100.0])
def test_a_dropped_stream_loses_its_connection(rate: float) -> None:
    rig = Rig(prefill_rate=0.0, decode_rate=rate)
    rig.engine.set_faults(Faults(drop_after=0))
    _, heard = rig.ask(answer=5)
    rig.time.until(10)
    assert heard.is_aborted
    assert not heard.tokens


def test_many_texts_to_rank_need_no_more_room_than_one() -> None:
    rig = Rig(blocks=10)
    _, heard = rig.ask(2048 * 100, 0)
    _, next_heard = rig.ask(16, 0)
    rig.time.until(300)
    assert heard.end == pytest.approx(204.8)
    assert next_heard.end is not None


def test_a_hanging_engine_never_answers() -> None:
    rig = Rig()
    rig.engine.set_faults(Faults(hang=True))
    sequence, heard = rig.ask(answer=1)
    rig.time.until(1000)
    assert (heard.tokens, heard.end, rig.engine.running) == ([], None, 1)
    rig.engine.cancel(sequence)
    assert rig.engine.running == 0


def test_shares_are_spread_evenly() -> None:
    share = Share()
    said = [share.next(0.25) for _ in range(12)]
    assert said == [False, False, False, True] * 3
    assert not any(Share().next(0.0) for _ in range(10))


@pytest.mark.parametrize(
    "fields",
    [
        [],
        {"slow": 0},
        {"slow": "2"},
        {"slow": True},
        {"error_rate": 1.1},
        {"hang": 1},
        {"stall_after": -1},
        {"drop_after": 1.5},
        {"unknown": 1},
    ],
)
def test_wrong_switches_are_refused(fields: object) -> None:
    with pytest.raises(ValueError, match=r"must|no fault|not a JSON object"):
        faults_of(fields)


def test_switches_that_are_not_named_are_off() -> None:
    assert faults_of({"slow": 2, "stall_after": None}) == Faults(slow=2)


@pytest.mark.parametrize("field", [{"slots": 0}, {"decode_in_prefill": 0.0}, {"model": ""}])
def test_options_out_of_range_are_refused(field: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        EngineOptions(**field)  # type: ignore[arg-type]
