"""Compares what two real llama.cpp nodes had cached under `round_robin` and `balanced`.

`make bench-prefix`. Twenty users of four teams ask three questions each; the users of a team share
a system prompt of about 1,000 tokens, and every question carries the talk so far. The cached tokens
are the engines' own figures, from the usage in the answers. Each policy gets prompts of its own, so
that neither profits from the other's cache.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from services.cli import models, stack
from services.cli.supervisor import Supervisor

PORT, BASE_PORT = 27080, 27000
USERS, TEAMS, TURNS = 20, 4, 3
_WORDS = ["river", "stone", "cloud", "paper", "light", "green", "winter", "market", "garden"]
_SYSTEM_WORDS = 900


def system_prompt(policy: str, team: int) -> str:
    """Returns about 1,000 tokens that no other team and no other policy has."""
    words = random.Random(f"{policy} {team}").choices(_WORDS, k=_SYSTEM_WORDS)
    return f"You are the assistant of team {team} under {policy}. Answer shortly. " + " ".join(
        words
    )


async def user(http: httpx.AsyncClient, policy: str, number: int) -> list[dict[str, float]]:
    """Holds one talk; returns what each answer took."""
    talk = [{"role": "system", "content": system_prompt(policy, number % TEAMS)}]
    taken = []
    for turn in range(TURNS):
        talk.append({"role": "user", "content": f"I am user {number}. Say something of {turn}."})
        body = {"model": stack.CHAT_MODEL, "messages": talk, "max_tokens": 8, "temperature": 0}
        began = time.monotonic()
        reply = (await http.post("/v1/chat/completions", json=body)).raise_for_status().json()
        usage = reply["usage"]
        taken.append(
            {
                "prompt": usage["prompt_tokens"],
                "cached": usage["prompt_tokens_details"]["cached_tokens"],
                "seconds": time.monotonic() - began,
            }
        )
        talk.append({"role": "assistant", "content": reply["choices"][0]["message"]["content"]})
    return taken


async def measure(http: httpx.AsyncClient, policy: str) -> dict[str, float]:
    """Runs all users under a policy, four at a time."""
    route = {"policy": policy}
    (await http.put(f"/mesh/v1/model-routes/{stack.CHAT_MODEL}", json=route)).raise_for_status()
    gate = asyncio.Semaphore(4)

    async def one(number: int) -> list[dict[str, float]]:
        async with gate:
            return await user(http, policy, number)

    began = time.monotonic()
    taken = [t for each in await asyncio.gather(*map(one, range(USERS))) for t in each]
    prompt, cached = sum(t["prompt"] for t in taken), sum(t["cached"] for t in taken)
    return {
        "requests": len(taken),
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "cached_share": cached / prompt,
        "mean_seconds": sum(t["seconds"] for t in taken) / len(taken),
        "total_seconds": time.monotonic() - began,
    }


async def run() -> dict[str, dict[str, float]]:
    """Starts the mesh and measures both policies."""
    folder = models.default_folder()
    models.fetch(folder, lambda name, done, total: None)
    result = {}
    with tempfile.TemporaryDirectory(prefix="infermesh-prefix-") as state:
        options = stack.Options(
            state_dir=Path(state) / "state", models_dir=folder, port=PORT, base_port=BASE_PORT
        )
        parts = [part for part in stack.build(options) if not part.name.endswith("-embed")]
        supervisor = Supervisor(parts)
        await supervisor.start()
        try:
            key = (options.state_dir / "admin.key").read_text().strip()
            headers = {"authorization": f"Bearer {key}"}
            url = f"http://127.0.0.1:{PORT}"
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=300) as http:
                for _ in range(100):
                    nodes = (await http.get("/mesh/v1/nodes")).json().get("nodes", [])
                    if sum(node["state"] == "NODE_STATE_READY" for node in nodes) == 2:
                        break
                    await asyncio.sleep(0.2)
                for policy in ("round_robin", "balanced"):
                    result[policy] = await measure(http, policy)
        finally:
            await supervisor.stop()
    return result


def show(result: Mapping[str, Mapping[str, float]]) -> None:
    """Prints the figures as a table."""
    table = Table(
        title=f"Two llama.cpp nodes, {USERS} users of {TEAMS} teams, {TURNS} questions each"
    )
    for column in ("policy", "prompt tokens", "of them cached", "share", "mean s", "total s"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for policy, figures in result.items():
        table.add_row(
            policy,
            f"{figures['prompt_tokens']:.0f}",
            f"{figures['cached_tokens']:.0f}",
            f"{figures['cached_share']:.1%}",
            f"{figures['mean_seconds']:.2f}",
            f"{figures['total_seconds']:.0f}",
        )
    Console().print(table)


def main() -> int:
    """Reads the command line and runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("bench-results/prefix.json"))
    output: Path = parser.parse_args().output
    result = asyncio.run(run())
    show(result)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
