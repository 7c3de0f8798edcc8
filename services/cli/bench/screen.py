"""A run in the terminal: how far it is, and its figures."""

from collections.abc import Sequence

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from services.cli.bench.compare import Comparison, Verdict
from services.cli.bench.figures import SHOWN, Report
from services.cli.bench.plan import Plan
from services.cli.bench.run import Taken

NAMES = {
    "ttft": "time to first token",
    "itl": "inter-token latency",
    "tpot": "time per output token",
    "e2e": "end to end",
    "late": "sent late by",
}
_LATE_MS = 10.0


def progress() -> Progress:
    """Returns a bar that `tell` moves; it is not shown where standard error is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def share_done(plan: Plan, taken: Taken, elapsed_s: float) -> float:
    """Returns how far a run is, 0 to 1: by time or by calls, whichever ends it first."""
    by_time = elapsed_s / plan.duration_s if plan.duration_s else 0.0
    by_calls = len(taken.calls) / plan.requests if plan.requests else 0.0
    return min(max(by_time, by_calls), 1.0)


def told(taken: Taken, elapsed_s: float) -> str:
    """Returns a line about a run that goes on."""
    failed = sum(bool(call.error) for call in taken.calls[-1000:])
    rate = len(taken.calls) / elapsed_s if elapsed_s > 0 else 0.0
    line = f"{len(taken.calls):,} answers, {rate:,.1f}/s, {taken.open} open"
    return f"{line}, {failed} of the last 1,000 failed" if failed else line


def spread_rows(found: Report) -> list[list[str]]:
    """Returns the table of percentiles, in milliseconds."""
    rows = []
    for name, words in NAMES.items():
        if spread := found["ms"].get(name):
            values = [spread["mean"], *(spread[f"p{p}"] for p in SHOWN), spread["max"]]
            rows.append([words, *map(number, values), f"{spread['count']:,}"])
    return rows


SPREAD_COLUMNS = ("ms", "mean", *(f"p{p}" for p in SHOWN), "most", "values")


def summary_rows(found: Report) -> list[tuple[str, str]]:
    """Returns what else a run was like."""
    calls, rates, tokens = found["calls"], found["rates"], found["tokens"]
    rows = [
        ("answered", f"{calls['answered']:,} in {found['window_s']:.1f} s"),
        ("failed", f"{calls['failed']:,}"),
        ("answers/s", number(rates["answers_per_s"])),
        ("output tokens/s", number(rates["output_tokens_per_s"])),
        ("all tokens/s", number(rates["all_tokens_per_s"])),
        ("open at a time, mean", number(rates["open_mean"])),
    ]
    if rates["goodput_per_s"] is not None:
        share = f"{100 * rates['good_share']:.1f} % of the calls"
        rows.append(("good answers/s", f"{number(rates['goodput_per_s'])}, {share}"))
    if tokens["prompt"]:
        rows.append(("prompt tokens", f"{tokens['prompt']:,}{_cached(found)}"))
    if tokens["answers_without_usage"]:
        rows.append(("answers without usage", f"{tokens['answers_without_usage']:,}"))
    if calls["abandoned"]:
        rows.append(("left under way", f"{calls['abandoned']:,}"))
    rows += [(f"answers, {name}", f"{count:,}") for name, count in found["cache"].items()]
    rows += [(f"failed: {code}", f"{count:,}") for code, count in found["errors"].items()]
    return rows


def node_rows(found: Report) -> list[tuple[str, str, str, str]]:
    """Returns what each node did."""
    answered = max(found["calls"]["answered"], 1)
    return [
        (
            node,
            f"{each['answers']:,}",
            f"{100 * each['answers'] / answered:.1f} %",
            number(each["ttft_p50"]),
        )
        for node, each in found["nodes"].items()
    ]


NODE_COLUMNS = ("node", "answers", "share", "TTFT p50, ms")


def change_rows(comparison: Comparison) -> list[tuple[str, str, str, str, str]]:
    """Returns the figures then and now."""
    return [
        (
            change.name,
            number(change.then),
            number(change.now),
            f"{change.ratio:.2f}",
            "" if change.verdict is Verdict.SAME else change.verdict.value,
        )
        for change in comparison.changes
    ]


CHANGE_COLUMNS = ("figure", "then", "now", "ratio", "verdict")


def warnings(found: Report) -> list[str]:
    """Returns what a reader of the figures must know."""
    said = []
    settings, late = found["settings"], found["ms"]["late"]
    if settings["rate"] is None:
        said.append(
            "A closed loop: callers who wait for slow answers ask less often, so percentiles leave "
            "out what callers who do not wait would have seen. --rate asks regardless."
        )
    elif late and late["p99"] > _LATE_MS:
        said.append(
            f"1 % of the calls were sent {number(late['p99'])} ms late or more: there was no room "
            f"for more than {settings['concurrency']} at a time, or the load is at its own limit. "
            "Their times count from when they were meant to begin."
        )
    if found["tokens"]["answers_without_usage"]:
        said.append("Answers without usage are not in the tokens per second.")
    return said


def show(found: Report, comparison: Comparison | None) -> None:
    """Prints a run."""
    from rich.console import Console

    from services.cli.tables import show as show_table

    console = Console(highlight=False)
    show_table("Run", ("what", "value"), summary_rows(found))
    console.print()
    show_table("Times", SPREAD_COLUMNS, spread_rows(found))
    console.print()
    show_table("Nodes", NODE_COLUMNS, node_rows(found))
    if comparison is not None:
        console.print()
        show_table(f"Against the run of {comparison.made}", CHANGE_COLUMNS, change_rows(comparison))
        for line in comparison.differing:
            console.print(f"Asked differently: {line}", style="yellow")
        console.print(f"Verdict: {comparison.verdict.value}", style="bold")
    for line in warnings(found):
        console.print(f"\n{line}", style="dim")


def number(value: float | None) -> str:
    """Returns a number with three digits or so; a dash where it is not known."""
    if value is None:
        return "–"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def _cached(found: Report) -> str:
    cached: Sequence[int] | int | None = found["tokens"]["cached"]
    if cached is None:
        return ""
    return f", {100 * found['tokens']['cached'] / found['tokens']['prompt']:.1f} % of them cached"
