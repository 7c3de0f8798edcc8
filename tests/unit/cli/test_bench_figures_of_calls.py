"""The figures of `infermesh bench`: percentiles, limits, noise."""

from array import array
from dataclasses import replace

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.bench.answer import Call
from services.cli.bench.figures import is_good, percentile, report
from services.cli.bench.plan import Plan
from services.cli.bench.run import Taken

_PLAN = Plan(model="m", slo_ttft_ms=100, slo_itl_ms=10.5)


def call(meant: float = 0.0, ttft: float = 0.05, tokens: int = 11, each: float = 0.01) -> Call:
    """Returns an answered call: the first token after `ttft`, then one every `each`, in seconds."""
    first = meant + ttft
    return Call(
        meant,
        sent=meant,
        first=first,
        last=first + (tokens - 1) * each,
        gaps=array("d", [each] * (tokens - 1)),
        prompt_tokens=100,
        output_tokens=tokens,
        node="a",
    )


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=50),
    st.floats(0, 100),
)
def test_percentiles_are_numpys(values: list[float], p: float) -> None:
    assert percentile(sorted(values), p) == pytest.approx(float(numpy.percentile(values, p)))


@pytest.mark.parametrize(
    ("made", "is_kept"),
    [
        (call(), True),
        (call(ttft=0.0999), True),
        (call(ttft=0.1001), False),
        (call(each=0.0104), True),
        (call(each=0.0106), False),
        (call(tokens=1), True),  # there is no time between tokens that could be too long
        (replace(call(), error="timeout"), False),
        (replace(call(), output_tokens=None), False),  # not known is not kept
        (Call(0.0, last=0.01, output_tokens=0), False),
    ],
)
def test_limits(made: Call, is_kept: bool) -> None:
    assert is_good(made, _PLAN) is is_kept


def test_a_limit_on_whole_answers_is_one_on_their_end() -> None:
    plan = replace(_PLAN, is_stream=False, slo_itl_ms=None)
    whole = Call(1.0, sent=1.0, last=1.09, output_tokens=5)
    assert is_good(whole, plan)
    assert not is_good(replace(whole, last=1.2), plan)


def test_rates_are_over_the_time_to_the_last_answer() -> None:
    slow = call(meant=1.0, ttft=0.9)
    found = report(_PLAN, Taken(began=0.0, calls=[call(), slow]), {"made": "now"})
    assert found["window_s"] == pytest.approx(2.0)
    assert found["rates"]["answers_per_s"] == pytest.approx(1.0)
    assert found["rates"]["goodput_per_s"] == pytest.approx(0.5)
    assert found["rates"]["output_tokens_per_s"] == pytest.approx(11)
    assert found["rates"]["all_tokens_per_s"] == pytest.approx(111)
    assert found["rates"]["open_mean"] == pytest.approx((0.15 + 1.0) / 2)
    assert found["ms"]["ttft"]["max"] == pytest.approx(900)
    assert found["ms"]["itl"]["count"] == 20
    assert found["ms"]["tpot"]["p50"] == pytest.approx(10)
    assert found["made"] == "now"


def test_failures_have_no_times_but_a_share_of_the_good() -> None:
    failed = Call(0.0, sent=0.0, last=0.001, error="rate_limited")
    found = report(_PLAN, Taken(calls=[call(), failed, failed]), {})
    assert found["ms"]["ttft"]["count"] == 1
    assert found["rates"]["good_share"] == pytest.approx(1 / 3)
    assert found["errors"] == {"rate_limited": 2}
    assert sum(piece["failed"] for piece in found["timeline"]) == 2


def test_what_is_not_known_is_not_zero() -> None:
    silent = replace(call(), prompt_tokens=None, output_tokens=None)
    found = report(Plan(model="m"), Taken(calls=[silent]), {})
    assert found["rates"]["output_tokens_per_s"] is None
    assert found["rates"]["goodput_per_s"] is None
    assert found["tokens"]["cached"] is None
    assert found["tokens"]["answers_without_usage"] == 1
    assert found["ms"]["tpot"] is None


def test_a_run_in_which_nothing_was_answered() -> None:
    found = report(_PLAN, Taken(calls=[]), {})
    assert found["calls"]["over"] == 0
    assert found["ms"] == {"ttft": None, "itl": None, "tpot": None, "e2e": None, "late": None}


def test_noise_is_that_of_eight_batches() -> None:
    even = [call(meant=at / 10) for at in range(80)]
    found = report(_PLAN, Taken(calls=even), {})
    assert found["ms"]["ttft"]["noise"]["p50"] == pytest.approx(0, abs=1e-9)
    slower = [call(meant=at / 10, ttft=0.05 + at // 10 / 100) for at in range(80)]
    noise = report(_PLAN, Taken(calls=slower), {})["ms"]["ttft"]["noise"]["p50"]
    assert noise == pytest.approx(numpy.std([10 * n for n in range(8)], ddof=1) / 8**0.5)
    assert report(_PLAN, Taken(calls=even[:20]), {})["ms"]["ttft"]["noise"] == {}


@given(st.lists(st.floats(0, 5000), min_size=1, max_size=200))
def test_the_timeline_has_every_call_once_and_is_bounded(ends: list[float]) -> None:
    calls = [Call(0.0, sent=0.0, last=end, output_tokens=1) for end in ends]
    timeline = report(_PLAN, Taken(calls=calls), {})["timeline"]
    assert len(timeline) <= 120
    assert sum(piece["answered"] for piece in timeline) == len(ends)
