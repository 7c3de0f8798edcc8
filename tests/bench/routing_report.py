"""Prints the figures of the bench of routing, and whether they are what routing promises."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from routing_figures import Figures


def show(found: Sequence[Figures]) -> None:
    """Prints the figures as a table."""
    table = Table(title="Time to first token in ms")
    columns = "rate/s policy p50 p90 p99 hits best %best reqs load done/s tok/s failed"
    for column in columns.split():
        table.add_column(column, justify="left" if column == "policy" else "right")
    last = None
    for each in sorted(found, key=lambda f: f.rate):
        if last is not None and each.rate != last:
            table.add_section()
        last = each.rate
        table.add_row(
            f"{each.rate:g}",
            each.policy,
            *(f"{ms:.0f}" for ms in each.ttft_ms),
            f"{100 * each.hit_share:.1f}",
            f"{100 * each.best_share:.1f}",
            f"{100 * each.of_best:.1f}",
            f"{each.requests_skew:.2f}",
            f"{each.load_skew:.2f}",
            f"{each.per_s:.1f}",
            f"{each.tokens_per_s:.0f}",
            str(each.failed),
        )
    Console(width=130).print(table)


def show_claims(found: Sequence[Figures]) -> bool:
    """Prints whether the figures are what routing promises, and returns it."""
    by = {(f.policy, f.rate): f for f in found}
    rates = sorted({f.rate for f in found})
    kept = True

    def claim(text: str, holds: bool) -> None:
        nonlocal kept
        kept &= holds
        print(f"{'yes' if holds else 'NO '}  {text}")

    for other, factor in (("random", 10), ("least_loaded", 3)):
        ratios = {
            rate: by[other, rate].ttft_ms[1] / by["balanced", rate].ttft_ms[1]
            for rate in rates
            if (other, rate) in by and ("balanced", rate) in by
        }
        if ratios:
            listed = ", ".join(
                f"{value:.0f}x at {rate:g}/s"
                if math.isfinite(value)
                else f"it failed at {rate:g}/s"
                for rate, value in ratios.items()
            )
            best = max((value for value in ratios.values() if math.isfinite(value)), default=0.0)
            claim(f"p90 at least {factor}x better than {other}: {listed}", best >= factor)
    own = [f for f in found if f.policy == "balanced"]
    if own:
        worst = min(f.of_best for f in own)
        claim(f"hits at least 85 % of the best possible: {100 * worst:.1f} %", worst >= 0.85)
        skew = max(f.load_skew for f in own)
        claim(f"no node above 1.3 times the mean load: {skew:.2f}", skew <= 1.3)
        claim("no failures", not any(f.failed for f in own))
    return kept
