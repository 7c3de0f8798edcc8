"""Reads an engine's metrics in Prometheus' text format.

The format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

_LABEL = re.compile(rb'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")


class Sample(NamedTuple):
    """One line: its labels as they are written, and its value, NaN where it is no number."""

    labels: bytes
    value: float

    def label(self, name: str) -> str | None:
        """Returns a label's value, or None where it is not there."""
        for found in _LABEL.finditer(self.labels):
            if found[1] == name.encode():
                return _ESCAPE.sub(
                    lambda e: "\n" if e[1] == "n" else e[1], found[2].decode(errors="replace")
                )
        return None


class MetricsPage:
    """The metrics of interest on one page.

    Args:
        pattern: What `metrics_pattern` made.
        text: The page.
        counts: Says which samples count; all of them where it is None.
    """

    def __init__(
        self,
        pattern: re.Pattern[bytes],
        text: bytes,
        counts: Callable[[Sample], bool] | None = None,
    ) -> None:
        self._samples: dict[bytes, list[Sample]] = {}
        for found in pattern.finditer(text):
            sample = Sample(found[2] or b"", _number(found[3]))
            if counts is None or counts(sample):
                self._samples.setdefault(found[1], []).append(sample)

    def samples(self, *names: str) -> list[Sample]:
        """Returns the samples of the first of several names that has any.

        Names that mean the same are given newest first: engines rename their metrics, and keep the
        old name beside the new one for a while.
        """
        for name in names:
            if found := self._samples.get(name.encode()):
                return found
        return []

    def total(self, *names: str) -> float | None:
        """Returns the sum over the labels; None where a sample is missing or makes no sense."""
        values = self._values(names)
        return math.fsum(values) if values else None

    def mean(self, *names: str) -> float | None:
        """Returns the mean over the labels; None where a sample is missing or makes no sense."""
        values = self._values(names)
        return math.fsum(values) / len(values) if values else None

    def _values(self, names: tuple[str, ...]) -> list[float]:
        values = [sample.value for sample in self.samples(*names)]
        # A page with one false sample says nothing of their sum.
        return values if all(math.isfinite(v) and v >= 0 for v in values) else []


def metrics_pattern(*names: str) -> re.Pattern[bytes]:
    """Returns the pattern that finds the samples of some metrics; made once for each engine."""
    wanted = b"|".join(re.escape(name.encode()) for name in names)
    return re.compile(
        rb"^(" + wanted + rb")(?:[ \t]*\{(.*)\}[ \t]*|[ \t]+)"
        rb"([^ \t\r\n{}]+)(?:[ \t]+-?[0-9]+)?[ \t\r]*$",
        re.MULTILINE,
    )


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
