"""`infermesh bench` against the real mesh: nodes, caches and tokens as callers see them."""

import json
from pathlib import Path

from e2e.fleet import Fleet
from e2e.mesh import CHAT


def test_a_run_tells_nodes_tokens_and_cache(fleet: Fleet, tmp_path: Path) -> None:
    prompts, report = tmp_path / "prompts.jsonl", tmp_path / "report.json"
    question = {"prompt": "Say yes.", "max_tokens": 4, "temperature": 0, "enable_caching": True}
    prompts.write_text(json.dumps(question) + "\n")
    options = ["--requests", "8", "--concurrency", "2", "--warmup", "1", "--json", str(report)]
    done = fleet.command("bench", CHAT, *options, "--prompts", str(prompts))
    found = json.loads(report.read_text())
    assert found["calls"] == {"over": 8, "answered": 8, "failed": 0, "abandoned": 0}
    # The one that warmed up asked first; calls at the same time may go to the other node, twice
    # where it is slow to answer the first.
    assert found["cache"]["hit"] >= 6
    assert sum(found["cache"].values()) == 8
    assert set(found["nodes"]) <= {"node-1", "node-2"}
    assert found["tokens"]["output"] == 8 * 4
    assert found["tokens"]["answers_without_usage"] == 0
    assert "answers, hit" in done.stdout

    done = fleet.command("bench", CHAT, "--key", "im-wrong", check=False)
    assert done.returncode == 1
    assert "invalid_api_key" in done.stderr
