"""Compares a run with an earlier one, and says which of the differences are more than chance."""

import enum
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.cli.bench.figures import Report

TOLERANCE = 0.05
_SIGMAS = 2.0
# What may differ between runs that are worth comparing.
_FREE_SETTINGS = frozenset({"seed", "duration_s", "requests", "warmup", "timeout_s"})
_FIGURES = (  # path, name, whether less is better
    (("rates", "answers_per_s"), "answers/s", False),
    (("rates", "output_tokens_per_s"), "output tokens/s", False),
    (("rates", "goodput_per_s"), "good answers/s", False),
    (("ms", "ttft", "p50"), "TTFT p50, ms", True),
    (("ms", "ttft", "p99"), "TTFT p99, ms", True),
    (("ms", "itl", "p50"), "ITL p50, ms", True),
    (("ms", "itl", "p99"), "ITL p99, ms", True),
    (("ms", "tpot", "p50"), "TPOT p50, ms", True),
    (("ms", "e2e", "p50"), "end to end p50, ms", True),
    (("ms", "e2e", "p99"), "end to end p99, ms", True),
)


class Verdict(enum.Enum):
    """How a figure, or a run, stands to the earlier one."""

    BETTER = "better"
    SAME = "same"
    WORSE = "worse"
    MIXED = "better and worse"


@dataclass(frozen=True)
class Change:
    """A figure then and now.

    Attributes:
        name: For people.
        then: In the earlier run.
        now: In this one.
        verdict: How it stands.
    """

    name: str
    then: float
    now: float
    verdict: Verdict

    @property
    def ratio(self) -> float:
        """Now over then; infinite where there was nothing then."""
        if not self.then:
            return math.inf if self.now else 1.0
        return self.now / self.then


@dataclass(frozen=True)
class Comparison:
    """A run beside an earlier one.

    Attributes:
        changes: The figures that both have.
        differing: Settings that differ, as `name: then → now`: these runs asked different things.
        made: When the earlier one was.
    """

    changes: Sequence[Change]
    differing: Sequence[str]
    made: str

    @property
    def is_worse(self) -> bool:
        """Whether any figure is."""
        return any(change.verdict is Verdict.WORSE for change in self.changes)

    @property
    def verdict(self) -> Verdict:
        """How the run stands as a whole."""
        found = {change.verdict for change in self.changes} - {Verdict.SAME}
        if not found:
            return Verdict.SAME
        return found.pop() if len(found) == 1 else Verdict.MIXED


def read(path: Path) -> Report:
    """Returns an earlier run.

    Raises:
        ValueError: The file holds none.
        OSError: It cannot be read.
    """
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError:
        raise ValueError(f"{path} is no JSON.") from None
    if not isinstance(found, dict) or found.get("format") != 1 or "ms" not in found:
        raise ValueError(f"{path} holds no run of infermesh bench.")
    return found


def compare(earlier: Report, now: Report, tolerance: float = TOLERANCE) -> Comparison:
    """Compares two runs.

    A figure differs where it does so by more than the tolerance, a share, and by more than two
    standard errors of the difference, as far as the runs were long enough to have any.
    """
    changes = []
    for path, name, less_is_better in _FIGURES:
        then_value, now_value = _at(earlier, path), _at(now, path)
        if then_value is None or now_value is None:
            continue
        error = math.hypot(_noise(earlier, path), _noise(now, path))
        verdict = _verdict(then_value, now_value, tolerance, error, less_is_better)
        changes.append(Change(name, then_value, now_value, verdict))
    changes.append(_failures(earlier, now))
    return Comparison(changes, _differing(earlier, now), str(earlier.get("made", "")))


def _verdict(
    then: float, now: float, tolerance: float, error: float, less_is_better: bool
) -> Verdict:
    difference = now - then
    if abs(difference) <= max(tolerance * abs(then), _SIGMAS * error):
        return Verdict.SAME
    return Verdict.BETTER if (difference < 0) == less_is_better else Verdict.WORSE


def _failures(earlier: Report, now: Report) -> Change:
    """Returns the share of calls that failed; the error is that of two proportions."""
    shares, variance = [], 0.0
    for run in (earlier, now):
        count = max(run["calls"]["over"], 1)
        share = run["calls"]["failed"] / count
        shares.append(share)
        variance += share * (1 - share) / count
    verdict = _verdict(shares[0], shares[1], 0.0, math.sqrt(variance), less_is_better=True)
    return Change("failed, %", 100 * shares[0], 100 * shares[1], verdict)


def _at(run: Report, path: Sequence[str]) -> float | None:
    value: object = run
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def _noise(run: Report, path: Sequence[str]) -> float:
    """Returns the standard error of a figure, 0 where it is not known."""
    if path[0] == "rates":
        relative = _at(run, ("rates", "noise"))
        rate, value = _at(run, ("rates", "answers_per_s")), _at(run, path)
        return relative / rate * value if relative and rate and value else 0.0
    return _at(run, (*path[:-1], "noise", path[-1])) or 0.0


def _differing(earlier: Report, now: Report) -> list[str]:
    then, after = earlier["settings"], now["settings"]
    return [
        f"{name}: {then.get(name)} → {after.get(name)}"
        for name in sorted({*then, *after} - _FREE_SETTINGS)
        if then.get(name) != after.get(name)
    ]
