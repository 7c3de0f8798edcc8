"""What `make bench` writes of its samples."""

import dataclasses
import json
from pathlib import Path

import pytest
from bench_figures import BEGIN, END, Run, document, markdown, percentiles, save

_MACHINE = {"rounds": 2, "seconds": 4, "cores": 2, "day": "2026-01-02", "load before": 0.1}
_LOAD = "unary"
_PACED = "paced"


@pytest.fixture
def run() -> Run:
    found = Run(_MACHINE)
    for per_s, failed, mib in ((100.0, 1.0, 50.0), (300.0, 2.0, 40.0)):
        figures = {"per_s": per_s, "failed": failed, "p50_ms": 1.0, "p99_ms": 2.0}
        found.add(_LOAD, "engine alone", figures)
        own = {**figures, "cpu_ms": 1.0, "cpu_ms auth": 0.7, "memory_mib": mib, "mib auth": mib}
        found.add(_LOAD, "infermesh", own)
    times = {"first_p50_ms": 1.0, "first_p99_ms": 2.0, "chunk_p50_ms": 0.5, "chunk_p99_ms": 1.0}
    found.add(_PACED, "engine alone", {**times, "failed": 0.0})
    found.add(_PACED, "infermesh", {**{k: 2 * v for k, v in times.items()}, "failed": 3.0})
    found.add(_PACED, "LiteLLM", {"died": 1.0, "failed": 500.0})
    return found


def test_medians_sums_and_peaks(run: Run) -> None:
    own = run.of(_LOAD)["infermesh"]
    assert own["per_s"] == 200
    assert own["failed"] == 3
    assert own["memory_mib"] == own["mib auth"] == 50


def test_tables_say_what_is_added_and_who_died(run: Run) -> None:
    run.missing["Portkey"] = "no such program"
    text = markdown(run)
    assert "| **infermesh** | 200 | 1.00 | 1.00 | 2.00 | 1.00 | 50 | 3 |" in text
    own = "| **infermesh** | 2.00 | 4.00 | 1.00 | 2.00 | 1.00 | 2.00 | 1.00 | – | – | 3 |"
    assert own in text
    assert "| LiteLLM | – | – | – | – | – | – | – | – | – | 500 |" in text
    assert "LiteLLM died in 1 rounds of “paced”" in text
    assert "Portkey was not measured: no such program" in text
    assert "| unary | 0.70 | 1.00 |" in text


def test_only_the_marked_block_of_a_document_changes(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    document(run, path)
    first = path.read_text()
    assert first.startswith(f"before\n{BEGIN}\n\nMedians of 2") and "old" not in first
    assert first.endswith(f"{END}\nafter\n")
    document(run, path)
    assert path.read_text() == first


def test_a_document_without_the_block_is_left_alone(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("before\n")
    with pytest.raises(ValueError, match="not found"):
        document(run, path)
    assert path.read_text() == "before\n"


def test_what_is_saved_is_read_again(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.json"
    save(run, path)
    assert Run(**json.loads(path.read_text())) == run
    assert [each.name for each in path.parent.iterdir()] == ["bench.json"]
    assert dataclasses.asdict(run)["machine"] == _MACHINE


def test_percentiles_are_values_that_were_measured() -> None:
    found = percentiles("chunk", [float(value) for value in range(1, 101)])
    assert found == {"chunk_p50_ms": 51.0, "chunk_p99_ms": 99.0}
    assert percentiles("chunk", []) == {}
