"""Draws the figures of `make bench`: a panel for each workload, a dot for each target.

The axes are logarithmic, so what is read is where a dot is, and nothing has a length.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from bench_figures import OWN, Figures
from matplotlib.ticker import FuncFormatter, NullFormatter


def draw(result: Mapping[str, Mapping[str, Figures]], path: Path) -> None:
    """Writes the picture: answers a second, or milliseconds where streams are paced."""
    panels = []
    for workload, targets in result.items():
        is_load = any("per_s" in each for each in targets.values())
        wanted = (
            {"per_s": "answers a second"}
            if is_load
            else {
                "first_p50_ms": "first byte, p50, ms",
                "chunk_p99_ms": "a chunk, p99, ms",
            }
        )
        for key, unit in wanted.items():
            values = {name: each[key] for name, each in targets.items() if each.get(key)}
            panels.append((f"{workload}\n{unit}", values))
    columns = 2
    lines = math.ceil(len(panels) / columns) or 1
    figure, axes = plt.subplots(
        lines, columns, figsize=(11, 2.6 * lines), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, values) in zip(axes.flat, panels, strict=False):
        names = list(values)[::-1]
        colors = ["#c0392b" if name == OWN else "#5d7592" for name in names]
        found = [values[name] for name in names]
        axis.scatter(found, names, color=colors, s=34, zorder=3)
        for name, value in zip(names, found, strict=True):
            axis.annotate(
                _shown(value),
                (value, name),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(axis="both", alpha=0.3, linewidth=0.6)
        axis.margins(x=0.2, y=0.1)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
