"""The table of what was broken and how long it took: printed, and kept as JSON."""

import json
from pathlib import Path

_FILE = Path(__file__).parents[2] / "bench-results" / "chaos.json"


def note(fault: str, **figures: object) -> None:
    """Adds a row."""
    _FILE.parent.mkdir(exist_ok=True)
    rows = json.loads(_FILE.read_text()) if _FILE.exists() else {}
    rows[fault] = figures
    _FILE.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"CHAOS {fault}: " + ", ".join(f"{k} {v}" for k, v in figures.items()))
