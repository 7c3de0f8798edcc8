"""Draws the figures of the bench of routing."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullLocator
from routing_figures import Figures

_STYLES = {
    "random": ("#9a9a9a", "o"),
    "round_robin": ("#e0a030", "s"),
    "least_loaded": ("#3b7dd8", "^"),
    "balanced": ("#c0392b", "D"),
}


def draw(found: Sequence[Figures], path: Path, title: str) -> None:
    """Writes a picture with one panel for each question that the bench answers."""
    panels = (
        ("p90 time to first token, ms", lambda f: f.ttft_ms[1], True, None),
        ("p50 time to first token, ms", lambda f: f.ttft_ms[0], True, None),
        ("cache hits, % of the best possible", lambda f: 100 * f.of_best, False, 85),
        ("load of the busiest node over the mean", lambda f: f.load_skew, False, 1.3),
    )
    policies = list(dict.fromkeys(f.policy for f in found))
    rates = sorted({f.rate for f in found})
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for axis, (name, value, is_log, mark) in zip(axes.flat, panels, strict=True):
        for policy in policies:
            color, marker = _STYLES.get(policy, ("#2e8b57", "x"))
            points = sorted((f.rate, value(f)) for f in found if f.policy == policy)
            points = [(x, y) for x, y in points if math.isfinite(y)]
            axis.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=color,
                marker=marker,
                label=policy.replace("_", " "),
            )
        if is_log and axis.lines and any(len(line.get_xdata()) for line in axis.lines):
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        else:
            axis.set_ylim(bottom=0)
        if mark is not None:
            axis.axhline(mark, color="black", linewidth=0.8, linestyle=":")
        axis.set_xscale("log", base=2)
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_title(name, fontsize=10)
        axis.grid(visible=True, alpha=0.3)
        axis.set_xlabel("questions per second")
    axes[0][0].legend(fontsize=9)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
