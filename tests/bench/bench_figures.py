"""The figures of `make bench` for people: tables in the terminal and in Markdown, JSON, a plot."""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Figures = dict[str, float]
OWN, ALONE = "infermesh", "engine alone"
BEGIN, END = "<!-- make bench: what follows is written by it -->", "<!-- make bench: end -->"


def percentiles(name: str, values: Sequence[float]) -> Figures:
    """Returns p50 and p99; nothing where nothing was measured."""
    if not values:
        return {}
    ordered = sorted(values)
    return {
        f"{name}_p50_ms": ordered[len(ordered) // 2],
        f"{name}_p99_ms": ordered[min(math.ceil(len(ordered) * 0.99), len(ordered)) - 1],
    }


@dataclass
class Run:
    """What one run has measured so far.

    Attributes:
        machine: Where, when and how.
        samples: Figures of each round, by workload and then by target.
        missing: Why a target was not measured, by its name.
    """

    machine: Mapping[str, object]
    samples: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, workload: str, target: str, figures: Figures) -> None:
        """Keeps a round's figures."""
        self.samples.setdefault(workload, {}).setdefault(target, []).append(figures)

    def medians(self) -> dict[tuple[str, str], Figures]:
        """Returns the medians over the rounds; of failures the sum, of memory the most."""
        return {
            (workload, target): _combined(taken)
            for workload, targets in self.samples.items()
            for target, taken in targets.items()
        }

    def of(self, workload: str) -> dict[str, Figures]:
        """Returns the medians of one workload, by target."""
        return {name: _combined(taken) for name, taken in self.samples[workload].items()}


def _combined(taken: Sequence[Figures]) -> Figures:
    figures = {}
    for name in dict.fromkeys(name for each in taken for name in each):
        values = [each[name] for each in taken if name in each]
        if name in ("failed", "died", "down"):
            figures[name] = sum(values)
        elif name == "memory_mib" or name.startswith("mib "):
            figures[name] = max(values)
        else:
            figures[name] = statistics.median(values)
    return figures


def short(figures: Figures) -> str:
    """Returns the figures in a line, less those of single processes."""
    shown = {k: v for k, v in figures.items() if " " not in k}
    return "  ".join(f"{name} {value:.3g}" for name, value in shown.items())


def save(run: Run, output: Path) -> None:
    """Writes the samples; what was there is whole until the new is."""
    output.parent.mkdir(parents=True, exist_ok=True)
    new = output.with_suffix(".new")
    new.write_text(json.dumps(dataclasses.asdict(run), indent=1) + "\n")
    new.rename(output)


def show(run: Run, output: Path) -> None:
    """Prints the tables, and writes them and a plot beside the samples."""
    from bench_plot import draw
    from rich.console import Console
    from rich.table import Table

    console = Console(width=150)
    for workload in run.samples:
        header, rows = _table(run.of(workload))
        table = Table(title=workload)
        for index, name in enumerate(header):
            table.add_column(name, justify="right" if index else "left")
        for row in rows:
            is_own = row[0] == OWN
            table.add_row(*row, style="bold" if is_own else "")
        console.print(table)
    for note in _notes(run):
        console.print(note)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".md").write_text(markdown(run))
    draw({workload: run.of(workload) for workload in run.samples}, output.with_suffix(".svg"))
    print(f"written to {output}, {output.with_suffix('.md')} and {output.with_suffix('.svg')}")


def markdown(run: Run) -> str:
    """Returns the tables with what they were made by."""
    machine = run.machine
    pages = [
        f"Medians of {machine['rounds']} interleaved rounds, loads of {machine['seconds']} s, "
        f"{machine['cores']} cores, {machine['day']}; load average before: "
        f"{machine['load before']}. *Added* is over the engine alone; CPU-ms are of all processes "
        "of a target for each answer, most MiB their memory at its highest, failures those of all "
        "rounds."
    ]
    for workload in run.samples:
        header, rows = _table(run.of(workload))
        marked = [[f"**{row[0]}**" if row[0] == OWN else row[0], *row[1:]] for row in rows]
        lines = [header, ["---"] + ["---:"] * (len(header) - 1), *marked]
        pages.append(f"**{workload}**\n\n" + _lines(lines))
    if parts := _parts(run):
        pages.append("**CPU-ms of each of the mesh's processes for an answer**\n\n" + parts)
    pages += _notes(run)
    return "\n\n".join(pages) + "\n"


def document(run: Run, path: Path) -> None:
    """Rewrites the marked block of a Markdown file.

    Raises:
        ValueError: It has no such block.
    """
    text = path.read_text()
    begin, end = text.index(BEGIN), text.index(END)
    path.write_text(f"{text[:begin]}{BEGIN}\n\n{markdown(run)}\n{text[end:]}")


def _lines(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(each)} |" for each in lines)


def _parts(run: Run) -> str:
    """Returns a table of the mesh's processes; those that nothing goes through are left out."""
    found = {w: run.of(w).get(OWN, {}) for w in run.samples}
    names = list(dict.fromkeys(k for each in found.values() for k in each if k[:7] == "cpu_ms "))
    names = [each for each in names if any(f.get(each, 0) >= 0.005 for f in found.values())]
    if not names:
        return ""
    header = ["", *(each.removeprefix("cpu_ms ") for each in names), "all"]
    rows = [
        [
            workload,
            *(f"{figures[each]:.2f}" if each in figures else "–" for each in [*names, "cpu_ms"]),
        ]
        for workload, figures in found.items()
        if "cpu_ms" in figures
    ]
    return _lines([header, ["---"] + ["---:"] * (len(header) - 1), *rows])


def _notes(run: Run) -> list[str]:
    said = [f"{name} was not measured: {why}" for name, why in run.missing.items()]
    for (workload, target), figures in run.medians().items():
        if died := figures.get("died"):
            said.append(
                f"{target} died in {died:.0f} rounds of “{workload}” and was started again."
            )
        if down := figures.get("down"):
            said.append(f"{target} was down in {down:.0f} rounds of “{workload}”.")
    return said


def _table(targets: Mapping[str, Figures]) -> tuple[list[str], list[list[str]]]:
    is_load = any("per_s" in figures for figures in targets.values())
    if is_load:
        header = ["", "per second", "of infermesh", "p50 ms", "p99 ms"]
    else:
        header = ["", "first p50 ms", "first p99 ms", "chunk p50 ms", "chunk p99 ms"]
        header += ["added first p50", "added first p99", "added chunk p99"]
    header += ["CPU-ms", "most MiB", "failed"]
    mesh, alone = targets.get(OWN, {}), targets.get(ALONE, {})
    rows = []
    for name, figures in targets.items():

        def at(key: str, digits: int = 2, of: Figures = figures) -> str:
            return f"{of[key]:,.{digits}f}" if key in of else "–"

        def added(key: str, of: Figures = figures, own: bool = name != ALONE) -> str:
            return f"{of[key] - alone[key]:,.2f}" if own and key in of and key in alone else "–"

        if is_load:
            share = figures["per_s"] / mesh["per_s"] if figures.get("per_s") and mesh else math.nan
            shown = "–" if math.isnan(share) else f"{share:.2f}"
            cells = [at("per_s", 0), shown, at("p50_ms"), at("p99_ms")]
        else:
            cells = [at(f"{kind}_{p}_ms") for kind in ("first", "chunk") for p in ("p50", "p99")]
            cells += [added("first_p50_ms"), added("first_p99_ms"), added("chunk_p99_ms")]
        cells += [at("cpu_ms"), at("memory_mib", 0), at("failed", 0)]
        rows.append([name, *cells])
    return header, rows
