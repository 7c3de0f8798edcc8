"""The figures of a run: what it asked, what came back, and how long that took."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from services.cli.bench.answer import Call
from services.cli.bench.plan import Plan
from services.cli.bench.run import Taken

SHOWN = (50, 75, 90, 95, 99)
MEASURES = ("ttft", "itl", "tpot", "e2e")
_SLICES = 8
_MOST_BUCKETS = 120
_CURVE = 100

Report = dict[str, Any]
"""What is written as JSON; docs/bench.md says what is in it."""


def percentile(ordered: Sequence[float], p: float) -> float:
    """Returns a percentile of sorted values, between the two nearest ranks (type 7).

    Args:
        ordered: At least one value.
        p: 0 to 100.
    """
    at = (len(ordered) - 1) * p / 100
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def is_good(call: Call, plan: Plan) -> bool:
    """Says whether a call was answered within all limits that are set.

    A time that is not known keeps no limit: that of a stream without a token. One token has no time
    after it that could be too long.
    """
    if call.error:
        return False
    if plan.slo_ttft_ms is not None:
        seen = call.ttft_s if plan.is_stream else call.e2e_s
        if seen is None or seen * 1000 > plan.slo_ttft_ms:
            return False
    if plan.slo_itl_ms is not None and call.output_tokens != 1:
        if call.tpot_s is None:
            return False
        return call.tpot_s * 1000 <= plan.slo_itl_ms
    return True


def report(plan: Plan, taken: Taken, facts: Mapping[str, object]) -> Report:
    """Returns the figures.

    Args:
        plan: What was asked.
        taken: What came back.
        facts: What else a reader wants to know: when, where, with which version.
    """
    good = [call for call in taken.calls if not call.error]
    ends = [call.last for call in taken.calls if call.last is not None]
    window_s = max(max(ends, default=taken.began) - taken.began, 1e-9)
    made = [call.output_tokens for call in good if call.output_tokens is not None]
    read = [call.prompt_tokens for call in good if call.prompt_tokens is not None]
    cached = [call.cached_tokens for call in good if call.cached_tokens is not None]
    within = sum(is_good(call, plan) for call in taken.calls)
    known = bool(made)
    return {
        "format": 1,
        **facts,
        "settings": plan.settings(),
        "window_s": window_s,
        "calls": {
            "over": len(taken.calls),
            "answered": len(good),
            "failed": len(taken.calls) - len(good),
            "abandoned": taken.abandoned,
        },
        "rates": {
            "answers_per_s": len(good) / window_s,
            "output_tokens_per_s": sum(made) / window_s if known else None,
            "all_tokens_per_s": (sum(made) + sum(read)) / window_s if known else None,
            "goodput_per_s": within / window_s if plan.has_slo else None,
            "good_share": within / max(len(taken.calls), 1) if plan.has_slo else None,
            "open_mean": sum(c.e2e_s or 0.0 for c in taken.calls) / window_s,
            "noise": _rate_noise(good, taken.began, window_s),
        },
        "tokens": {
            "prompt": sum(read) if read else None,
            "output": sum(made) if made else None,
            "cached": sum(cached) if cached else None,
            "answers_without_usage": len(good) - len(made),
        },
        "ms": {
            "ttft": _spread(good, lambda c: c.ttft_s),
            "itl": _gaps(good),
            "tpot": _spread(good, lambda c: c.tpot_s),
            "e2e": _spread(good, lambda c: c.e2e_s),
            "late": _spread(taken.calls if plan.rate else (), _late_s),
        },
        "errors": dict(Counter(c.error for c in taken.calls if c.error).most_common()),
        "cache": dict(Counter(c.cache for c in good if c.cache)),
        "nodes": _nodes(good),
        "timeline": _timeline(taken, window_s),
    }


def _late_s(call: Call) -> float | None:
    return None if call.sent is None else call.sent - call.meant


def _spread(calls: Sequence[Call], of: Callable[[Call], float | None]) -> Report | None:
    """Returns the spread of a time over calls; None where no call has one."""
    values = [1000 * value for value in map(of, calls) if value is not None]
    return _described(values, _noise([[value] for value in values])) if values else None


def _gaps(calls: Sequence[Call]) -> Report | None:
    by_call = [[1000 * gap for gap in call.gaps] for call in calls if call.gaps]
    values = [gap for gaps in by_call for gap in gaps]
    return _described(values, _noise(by_call)) if values else None


def _described(values: list[float], noise: Mapping[str, float]) -> Report:
    values.sort()
    return {
        "count": len(values),
        "mean": statistics.fmean(values),
        **{f"p{p}": percentile(values, p) for p in SHOWN},
        "max": values[-1],
        "noise": dict(noise),
        "curve": [percentile(values, 100 * at / _CURVE) for at in range(_CURVE + 1)],
    }


def _noise(by_call: Sequence[Sequence[float]]) -> dict[str, float]:
    """Returns the standard errors of p50 and p99, by batch means (Schmeiser, 1982).

    Calls one after the other are not independent, so the run is cut into eight; nothing is said
    about a run that is too short for that.
    """
    size = len(by_call) // _SLICES
    if size < _SLICES:
        return {}
    batches = [
        sorted(value for values in by_call[at * size : (at + 1) * size] for value in values)
        for at in range(_SLICES)
    ]
    return {
        f"p{p}": statistics.stdev(percentile(batch, p) for batch in batches) / math.sqrt(_SLICES)
        for p in (50, 99)
    }


def _rate_noise(calls: Sequence[Call], began: float, window_s: float) -> float | None:
    """Returns the standard error of the answers per second, by the same batches."""
    if len(calls) < _SLICES * _SLICES:
        return None
    ended = Counter(
        min(int((c.last - began) / window_s * _SLICES), _SLICES - 1) for c in calls if c.last
    )
    rates = [ended[at] * _SLICES / window_s for at in range(_SLICES)]
    return statistics.stdev(rates) / math.sqrt(_SLICES)


def _nodes(calls: Sequence[Call]) -> Report:
    """Returns what each node answered, the busiest first."""
    by_node: dict[str, list[Call]] = {}
    for call in calls:
        by_node.setdefault(call.node or "unknown", []).append(call)
    found = {}
    for node, answered in sorted(by_node.items(), key=lambda item: -len(item[1])):
        firsts = sorted(1000 * call.ttft_s for call in answered if call.ttft_s is not None)
        found[node] = {
            "answers": len(answered),
            "output_tokens": sum(call.output_tokens or 0 for call in answered),
            "ttft_p50": percentile(firsts, 50) if firsts else None,
        }
    return found


def _timeline(taken: Taken, window_s: float) -> list[Report]:
    """Returns what happened in each piece of the run: a second, or as many as 120 pieces leave."""
    step_s = max(1, math.ceil(window_s / _MOST_BUCKETS))
    count = math.ceil(window_s / step_s)
    ended: list[list[Call]] = [[] for _ in range(count)]
    firsts: list[list[float]] = [[] for _ in range(count)]
    for call in taken.calls:
        if call.last is not None:
            ended[_bucket(call.last - taken.began, step_s, count)].append(call)
        if call.first is not None and not call.error:
            at = _bucket(call.first - taken.began, step_s, count)
            firsts[at].append(1000 * (call.first - call.meant))
    return [
        {
            "s": number * step_s,
            # The last piece ends with the run.
            "length_s": min(step_s, window_s - number * step_s),
            "answered": sum(not call.error for call in ended[number]),
            "failed": sum(bool(call.error) for call in ended[number]),
            "output_tokens": sum(call.output_tokens or 0 for call in ended[number]),
            "ttft_p50": percentile(sorted(firsts[number]), 50) if firsts[number] else None,
        }
        for number in range(count)
    ]


def _bucket(after_s: float, step_s: float, count: int) -> int:
    return min(int(after_s / step_s), count - 1)
