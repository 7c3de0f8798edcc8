"""Comparing runs of `infermesh bench`."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from services.cli.bench.answer import Call
from services.cli.bench.compare import Verdict, compare, read
from services.cli.bench.figures import report
from services.cli.bench.page import page
from services.cli.bench.plan import Plan
from services.cli.bench.run import Taken

_FACTS = {"made": "2026-01-02 <i>", "address": "127.0.0.1:8080"}


def run(ttft: float = 0.05, wobble: float = 0.0, failed: int = 0, **settings: Any) -> dict:
    """Returns a run of 80 calls a tenth of a second apart."""
    plan = Plan(model="m<b>", rate=10, slo_ttft_ms=80, **settings)
    calls = []
    for at in range(80):
        meant = at / 10
        first = meant + ttft + wobble * (at // 10 % 2)
        calls.append(Call(meant, sent=meant, first=first, last=first + 0.1, output_tokens=11))
    for bad in calls[:failed]:
        bad.error = "overloaded"
    return report(plan, Taken(calls=calls), _FACTS)


def verdicts(then: dict, now: dict) -> dict[str, Verdict]:
    return {change.name: change.verdict for change in compare(then, now).changes}


def test_the_same_run_is_the_same() -> None:
    found = compare(run(), run())
    assert found.verdict is Verdict.SAME
    assert not found.is_worse and not found.differing
    assert {change.ratio for change in found.changes} == {1.0}


@pytest.mark.parametrize(
    ("then", "now", "verdict"),
    [
        (0.05, 0.0526, Verdict.WORSE),
        (0.05, 0.0524, Verdict.SAME),
        (0.05, 0.0476, Verdict.SAME),
        (0.05, 0.0474, Verdict.BETTER),
    ],
)
def test_five_percent_is_no_difference(then: float, now: float, verdict: Verdict) -> None:
    assert verdicts(run(then), run(now))["TTFT p50, ms"] is verdict


def test_noise_is_no_difference() -> None:
    assert verdicts(run(0.05), run(0.054))["TTFT p50, ms"] is Verdict.WORSE
    noisy = run(0.044, wobble=0.02)
    assert verdicts(run(0.05), noisy)["TTFT p50, ms"] is Verdict.SAME


def test_failures_count_beyond_chance() -> None:
    assert verdicts(run(), run(failed=1))["failed, %"] is Verdict.SAME
    assert verdicts(run(), run(failed=10))["failed, %"] is Verdict.WORSE
    assert verdicts(run(failed=10), run())["failed, %"] is Verdict.BETTER


def test_more_of_rates_is_better() -> None:
    slow = copy.deepcopy(run())
    for name in ("answers_per_s", "output_tokens_per_s"):
        slow["rates"][name] /= 2
    found = verdicts(slow, run())
    assert found["answers/s"] is found["output tokens/s"] is Verdict.BETTER
    assert compare(run(), slow).is_worse


def test_what_only_one_run_has_is_not_compared() -> None:
    silent = run()
    silent["ms"]["ttft"] = silent["rates"]["output_tokens_per_s"] = None
    assert not {"TTFT p50, ms", "output tokens/s"} & set(verdicts(run(), silent))


def test_other_settings_are_told_and_chance_is_not() -> None:
    found = compare(run(seed=1), run(seed=2, concurrency=9, requests=3))
    assert list(found.differing) == ["concurrency: 8 → 9"]


def test_a_file_that_is_no_run(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("{", "[]", '{"format": 2, "ms": {}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"x\.json"):
            read(path)
    path.write_text(json.dumps(run()))
    assert read(path)["calls"]["over"] == 80


def test_the_page_needs_nothing_else_and_escapes() -> None:
    earlier, found = run(0.05), run(0.5, failed=3)
    text = page(found, compare(earlier, found), earlier)
    assert "<i>" not in text and "<b>x" not in text and "m<b>" not in text
    assert "m&lt;b&gt;" in text and "Verdict: <span" in text
    for word in ("http:", "https:", "src=", "<script", "url("):
        assert word not in text
    assert text.count("<svg") == 6  # there are no gaps between chunks in these runs
    assert "NaN" not in text and "None" not in text


def test_the_page_of_a_run_without_answers() -> None:
    nothing = report(Plan(model="m"), Taken(), _FACTS)
    assert "</html>" in page(nothing, None, None)
