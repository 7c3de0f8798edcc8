"""Says whether the request path has grown more expensive: `make bench-check`.

What a request costs in CPU depends on the machine, and on what else it does. So the mesh and plain
Envoy take turns under the same load, and what counts is the ratio: how many times what plain Envoy
needs for a request each process of the mesh needs for it. The budget (budget.json) has that ratio
as it was when it was last recorded, and by how much it may be exceeded.
"""

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench_load import LOADS, wrk
from bench_mesh import OWN, PLAIN, Started
from bench_processes import Processes
from bench_targets import Target
from rich.console import Console
from rich.table import Table

BUDGET = Path(__file__).with_name("budget.json")
WORKLOADS = ("unary, 1 KB, 16 callers", "stream, 64 chunks, 16 callers")
ALL = "all"
_LEAST = 0.1
"""Ratios below this, a tenth of plain Envoy, have no budget: they are only in the sum."""

Ratios = dict[str, dict[str, float]]
"""By workload, then by process; `all` is the sum."""


@dataclass(frozen=True)
class Finding:
    """One ratio beside its budget.

    Attributes:
        workload: What was asked.
        part: Which process.
        budget: What it was, None where nothing is recorded.
        now: What it is.
        most: What it may be.
    """

    workload: str
    part: str
    budget: float | None
    now: float
    most: float

    @property
    def is_over(self) -> bool:
        """Whether it costs more than it may."""
        return self.now > self.most


def judge(budget: Mapping, now: Ratios) -> list[Finding]:
    """Compares ratios with the recorded ones.

    A process may exceed its ratio by a share of it and by a share of all, since small ones move by
    more; all together only by a share. One that is not in the budget may cost that share of all.
    """
    margins = budget["margins"]
    found = []
    for workload, parts in now.items():
        recorded = budget["ratios"].get(workload, {})
        small = margins["share_of_all"] * recorded.get(ALL, 0.0)
        for part, ratio in parts.items():
            before = recorded.get(part)
            if part == ALL:
                most = (before or 0.0) * (1 + margins["all_share"])
            else:
                most = (before or 0.0) * (1 + margins["share"]) + small
            found.append(Finding(workload, part, before, ratio, most))
    return found


class Check:
    """Measures ratios, round by round."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._ratios: dict[tuple[str, str], list[float]] = {}

    async def run(self, rounds: int, targets: list[Target], processes: Processes) -> None:
        """Measures some more rounds."""
        for _ in range(rounds):
            for workload in WORKLOADS:
                spent = {}
                for target in targets:
                    spent[target.name] = await asyncio.to_thread(
                        self._cpu_ms, target, workload, processes
                    )
                (plain,) = spent[PLAIN].values()
                ratios = {name: value / plain for name, value in spent[OWN].items()}
                for name, value in {ALL: sum(ratios.values()), **ratios}.items():
                    self._ratios.setdefault((workload, name), []).append(value)

    def ratios(self) -> Ratios:
        """Returns the medians."""
        found: Ratios = {}
        for (workload, part), values in self._ratios.items():
            ratio = statistics.median(values)
            if part == ALL or ratio >= _LEAST:
                found.setdefault(workload, {})[part] = round(ratio, 2)
        return found

    def _cpu_ms(self, target: Target, workload: str, processes: Processes) -> dict[str, float]:
        body, connections, churn = LOADS[workload]
        before = processes.cpu_s(target.parts)
        loaded = wrk(target, body, connections, self._seconds, churn)
        after = processes.cpu_s(target.parts)
        if loaded["failed"]:
            raise SystemExit(f"{target.name} failed {loaded['failed']} calls of “{workload}”")
        found: dict[str, float] = {}
        for name in target.parts:
            # How nodes share the work is no matter of cost.
            shown = "nodes" if name.startswith("node-") else name
            spent = 1000 * (after[name] - before[name]) / loaded["requests"]
            found[shown] = found.get(shown, 0.0) + spent
        return found


async def measure(rounds: int, seconds: int, budget: Mapping | None) -> Ratios:
    """Returns the ratios; what is over its budget is measured once more before it is told."""
    # Only Envoy's own folder is asked for, which needs none.
    async with Started(Path(), (), {}, only=(PLAIN,)) as (targets, processes):
        compared = [target for target in targets if target.name in (OWN, PLAIN)]
        await Check(1).run(1, compared, processes)
        check = Check(seconds)
        await check.run(rounds, compared, processes)
        if budget and any(finding.is_over for finding in judge(budget, check.ratios())):
            print("over the budget: measured once more", flush=True)
            await check.run(rounds, compared, processes)
        return check.ratios()


def show(findings: list[Finding]) -> None:
    """Prints the ratios."""
    table = Table(title="CPU of a request, over that of plain Envoy")
    for name in ("workload", "process", "budget", "now", "at most", ""):
        table.add_column(name, justify="right" if name in ("budget", "now", "at most") else "left")
    for each in findings:
        before = "–" if each.budget is None else f"{each.budget:.2f}"
        verdict = "[red]over[/]" if each.is_over else ""
        cells = (each.workload, each.part, before, f"{each.now:.2f}", f"{each.most:.2f}", verdict)
        table.add_row(*cells)
    Console(width=110).print(table)


def main() -> int:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="Make what is measured the budget.")
    said = parser.parse_args()
    budget = json.loads(BUDGET.read_text())
    now = asyncio.run(measure(said.rounds, said.seconds, None if said.record else budget))
    if said.record:
        budget["ratios"] = now
        BUDGET.write_text(json.dumps(budget, indent=2) + "\n")
    findings = judge(budget, now)
    show(findings)
    over = [each for each in findings if each.is_over]
    for each in over:
        print(f"{each.part} takes {each.now:.2f} in “{each.workload}”, at most {each.most:.2f}")
    if over:
        print("`make profile` shows where; `make bench-check RECORD=1` makes it the budget.")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
