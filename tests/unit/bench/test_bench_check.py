"""The budget of the request path: what is over it, and what is not."""

import json

import pytest
from bench_check import ALL, BUDGET, WORKLOADS, judge

_BUDGET = {
    "margins": {"all_share": 0.1, "share": 0.25, "share_of_all": 0.015},
    "ratios": {"unary": {ALL: 20.0, "auth": 2.0}},
}


@pytest.mark.parametrize(
    ("part", "ratio", "is_over"),
    [
        (ALL, 22.0, False),
        (ALL, 22.1, True),
        ("auth", 2.8, False),
        ("auth", 2.81, True),
        ("new", 0.3, False),
        ("new", 0.31, True),
    ],
)
def test_what_is_over(part: str, ratio: float, is_over: bool) -> None:
    (found,) = judge(_BUDGET, {"unary": {part: ratio}})
    assert found.is_over is is_over
    assert found.budget == _BUDGET["ratios"]["unary"].get(part)


def test_the_recorded_budget_is_whole() -> None:
    budget = json.loads(BUDGET.read_text())
    assert set(budget["ratios"]) == set(WORKLOADS)
    for parts in budget["ratios"].values():
        assert parts[ALL] >= sum(ratio for part, ratio in parts.items() if part != ALL) * 0.9
        assert parts["envoy"] > 1
