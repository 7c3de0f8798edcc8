"""The figures of `make bench` for people: tables in the terminal and in Markdown, JSON, a plot."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

Figures = dict[str, float]
Result = dict[str, dict[str, Figures]]
"""By workload, then by target."""

SLOW = "20 streams a second, 20 tokens each"
MANY = "500 streams at 20 tokens/s"
_ALONE = "engine alone"


def percentiles(name: str, values: Sequence[float]) -> Figures:
    """Returns p50 and p99; nothing where nothing was measured."""
    if not values:
        return {}
    ordered = sorted(values)
    return {
        f"{name}_p50_ms": ordered[len(ordered) // 2],
        f"{name}_p99_ms": ordered[min(math.ceil(len(ordered) * 0.99), len(ordered)) - 1],
    }


def short(figures: Figures) -> str:
    """Returns the figures in a line, less those of single processes."""
    shown = {k: v for k, v in figures.items() if not k.startswith("cpu_ms ")}
    return "  ".join(f"{name} {value:.3g}" for name, value in shown.items())


def write(result: Result, machine: Mapping[str, object], output: Path) -> None:
    """Prints the tables; writes JSON, Markdown and a plot."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"machine": machine, "result": result}, indent=2) + "\n")
    console = Console(width=150)
    pages = []
    for workload, targets in result.items():
        header, rows = _table(targets)
        table = Table(title=workload)
        for index, name in enumerate(header):
            table.add_column(name, justify="right" if index else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
        pages.append(f"**{workload}**\n\n" + "\n".join(f"| {' | '.join(each)} |" for each in lines))
    output.with_suffix(".md").write_text("\n\n".join(pages) + "\n")
    _draw(result, output.with_suffix(".svg"))
    print(f"written to {output}, {output.with_suffix('.md')} and {output.with_suffix('.svg')}")


def _table(targets: Mapping[str, Figures]) -> tuple[list[str], list[list[str]]]:
    is_load = any("per_s" in figures for figures in targets.values())
    if is_load:
        header = ["", "per second", "of infermesh", "p50 ms", "p99 ms"]
    else:
        header = ["", "first p50 ms", "first p99 ms", "chunk p50 ms", "chunk p99 ms"]
        header += ["added first p50", "added first p99", "added chunk p99"]
    header += ["CPU-ms", "most MiB", "failed"]
    mesh, alone = targets.get("infermesh", {}), targets.get(_ALONE, {})
    rows = []
    for name, figures in targets.items():

        def at(key: str, digits: int = 2, of: Figures = figures) -> str:
            return f"{of[key]:,.{digits}f}" if key in of else "–"

        def added(key: str, of: Figures = figures) -> str:
            return f"{of[key] - alone[key]:.2f}" if key in of and key in alone else "–"

        if is_load:
            share = figures.get("per_s", 0) / mesh["per_s"] if mesh.get("per_s") else math.nan
            cells = [at("per_s", 0), f"{share:.2f}", at("p50_ms"), at("p99_ms")]
        else:
            cells = [at(f"{kind}_{p}_ms") for kind in ("first", "chunk") for p in ("p50", "p99")]
            cells += [added("first_p50_ms"), added("first_p99_ms"), added("chunk_p99_ms")]
        own = name != _ALONE
        cells += [
            at("cpu_ms") if own else "–",
            at("memory_mib", 0) if own else "–",
            at("failed", 0),
        ]
        rows.append([f"**{name}**" if name == "infermesh" else name, *cells])
    return header, rows


def _draw(result: Result, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    panels = []
    for workload, targets in result.items():
        key = "per_s" if any("per_s" in each for each in targets.values()) else "chunk_p99_ms"
        values = {name: each[key] for name, each in targets.items() if each.get(key)}
        panels.append((workload, "per second" if key == "per_s" else "ms, p99 of a chunk", values))
    columns = 2
    lines = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(11, 2.4 * lines), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (workload, unit, values) in zip(axes.flat, panels, strict=False):
        names = list(values)[::-1]
        colors = ["#c0392b" if name == "infermesh" else "#8a9bb0" for name in names]
        bars = axis.barh(names, [values[name] for name in names], color=colors)
        axis.bar_label(bars, fmt="{:,.3g}", fontsize=8, padding=3)
        axis.set_xscale("log")
        axis.margins(x=0.15)
        axis.set_title(f"{workload}: {unit}", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
