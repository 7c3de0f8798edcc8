"""Auth and Redis are killed at any instant: nobody gets in who may not, and every count is true.

`CHAOS_LIMIT_KILLS` says how often; `make chaos-limits` kills 200 times.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest

from chaos import table
from chaos.conftest import wait
from chaos.fleet import Fleet
from services.cli import stack
from services.cli.keeper import Backoff

KILLS = int(os.environ.get("CHAOS_LIMIT_KILLS", "5"))
RATE = 15.0
# After a kill: long enough for Python to be up again most of the time, and not always.
LONGEST_PAUSE_S = 5.0
MUCH = 10**9
TENANT = "killed"


@dataclass
class Load:
    """What callers saw.

    Attributes:
        tokens: What answers said that they took, by request id.
        statuses: How calls of those who may were answered.
        got_in: Calls of those who may not that were let in.
        refused: How theirs were answered.
    """

    tokens: dict[str, int] = field(default_factory=dict)
    statuses: Counter[int] = field(default_factory=Counter)
    got_in: list[str] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)


@pytest.mark.timeout(120 + KILLS * 20)
def test_nobody_gets_in_and_nothing_is_lost_or_doubled(fleet: Fleet) -> None:
    for name in ("auth", "redis"):
        # Killed this often, a part would wait ever longer.
        fleet._supervisor._keepers[name]._backoff = Backoff(most_s=0.2)
    with httpx.Client(
        base_url=fleet.url, headers={"authorization": f"Bearer {fleet.key}"}, timeout=30
    ) as admin:
        key_id, secret = _key(admin, tenant=TENANT)
        revoked_id, revoked = _key(admin, tenant=TENANT)
        admin.delete(f"/mesh/v1/keys/{revoked_id}").raise_for_status()
        closed_id, closed = _key(admin, tenant="closed")
        _limit(admin, {"tenant": TENANT}, tokens_per_day=MUCH)
        _limit(admin, {"key_id": key_id}, tokens_per_minute=MUCH, tokens_per_day=MUCH)
        _limit(admin, {"key_id": closed_id}, requests_per_minute=0)
        # Auth knows it within a second; nobody tries before.
        wait(lambda: [_status(admin, each) for each in (revoked, closed)] == [401, 429], 20)

        load = Load()
        intruders = {
            "unknown": "im-" + "x" * 43,
            "revoked": revoked,
            "closed": closed,
            "user as admin": secret,
        }
        began = time.monotonic()
        kills = asyncio.run(_run(fleet, load, secret, intruders))
        took_s = time.monotonic() - began
        wait(lambda: admin.get("/mesh/v1/limits").status_code == 200, 60)

        assert not load.got_in
        assert load.statuses[200] > 5 * KILLS

        scopes = [{"tenant": TENANT}, {"key_id": key_id}]
        ledger: dict[str, int] = {}

        def is_settled() -> bool:
            nonlocal ledger
            ledger = _ledger(admin, key_id)
            if ledger.keys() < load.tokens.keys():
                return False
            return all(_settled(admin, scope) == sum(ledger.values()) for scope in scopes)

        settled_s = wait(is_settled, 60)
        # What callers were told stands in the ledger as it was told, and once.
        assert {each: ledger.get(each) for each in load.tokens} == load.tokens
    table.note(
        f"auth or Redis killed {sum(kills.values())} times",
        kills=dict(kills),
        seconds=round(took_s),
        answered=load.statuses[200],
        refused_503=load.statuses[503],
        intruders_refused=sum(load.refused.values()),
        ledger_tokens=sum(ledger.values()),
        settled_after_s=round(settled_s, 1),
    )


async def _run(fleet: Fleet, load: Load, secret: str, intruders: dict[str, str]) -> "Counter[str]":
    limits = httpx.Limits(max_connections=500, max_keepalive_connections=100)
    kills: Counter[str] = Counter()
    async with (
        httpx.AsyncClient(base_url=fleet.url, limits=limits, timeout=30) as http,
        asyncio.TaskGroup() as tasks,
    ):
        killer = tasks.create_task(_kill(fleet, kills))
        number = 0
        began = time.monotonic()
        # And on until enough were answered: how long auth takes to come back is the machine's.
        while not killer.done() or (
            load.statuses[200] <= 5 * KILLS and time.monotonic() < began + 60 + 20 * KILLS
        ):
            number += 1
            tasks.create_task(_call(http, secret, load))
            who = [*intruders][number % len(intruders)]
            tasks.create_task(_intrude(http, who, intruders[who], load))
            await asyncio.sleep(1 / RATE)
    return kills


async def _kill(fleet: Fleet, kills: "Counter[str]") -> None:
    chance = random.Random(4)
    while sum(kills.values()) < KILLS:
        await asyncio.sleep(chance.uniform(0.0, LONGEST_PAUSE_S))
        name = chance.choice(["auth", "auth", "redis"])
        try:
            # Whatever it is doing; perhaps it is just coming up again.
            await asyncio.to_thread(fleet.signal, name, signal.SIGKILL)
        except (AssertionError, psutil.NoSuchProcess):
            continue  # It is away already.
        kills[name] += 1
    await asyncio.sleep(3.0)


async def _call(http: httpx.AsyncClient, secret: str, load: Load) -> None:
    body = {
        "model": stack.CHAT_MODEL,
        "messages": [{"role": "user", "content": "Question " * random.randint(1, 50)}],
        "max_tokens": random.randint(1, 8),
    }
    try:
        headers = {"authorization": f"Bearer {secret}"}
        reply = await http.post("/v1/chat/completions", json=body, headers=headers)
    except httpx.HTTPError:
        load.statuses[0] += 1
        return
    load.statuses[reply.status_code] += 1
    if reply.status_code == 200:
        load.tokens[reply.headers["x-request-id"]] = reply.json()["usage"]["total_tokens"]


async def _intrude(http: httpx.AsyncClient, who: str, secret: str, load: Load) -> None:
    headers = {"authorization": f"Bearer {secret}"}
    try:
        if who == "user as admin":
            reply = await http.get("/mesh/v1/keys", headers=headers)
        else:
            body = {"model": stack.CHAT_MODEL, "messages": [{"role": "user", "content": "Hi"}]}
            reply = await http.post("/v1/chat/completions", json=body, headers=headers)
    except httpx.HTTPError:
        return
    if reply.status_code in (401, 403, 429, 503):
        load.refused[reply.status_code] += 1
    else:
        load.got_in.append(f"{who}: {reply.status_code} {reply.text[:200]}")


def _status(admin: httpx.Client, secret: str) -> int:
    body = {"model": stack.CHAT_MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    headers = {"authorization": f"Bearer {secret}"}
    return admin.post("/v1/chat/completions", json=body, headers=headers).status_code


def _key(admin: httpx.Client, **fields: str) -> tuple[str, str]:
    made = admin.post("/mesh/v1/keys", json={"display_name": "killed", **fields})
    found = made.raise_for_status().json()
    return found["key"]["key_id"], found["secret"]


def _limit(admin: httpx.Client, scope: dict[str, str], **limits: int) -> None:
    body: dict[str, Any] = {"limits": {"scope": scope, **limits}}
    admin.put("/mesh/v1/limits", json=body).raise_for_status()


def _settled(admin: httpx.Client, scope: dict[str, str]) -> int:
    """Returns what Redis has of a scope's day, without what calls that were cut off reserved."""
    query = {f"scope.{name}": value for name, value in scope.items()}
    reply = admin.get("/mesh/v1/limits:state", params=query).raise_for_status()
    [day] = [each for each in reply.json()["uses"] if each["limit"] == "tokens_per_day"]
    return int(day["used"]) - int(day["reserved"])


def _ledger(admin: httpx.Client, key_id: str) -> dict[str, int]:
    found: dict[str, int] = {}
    query = {"key_id": key_id, "page_size": "1000"}
    while True:
        page = admin.get("/mesh/v1/usage/events", params=query).raise_for_status().json()
        for event in page["events"]:
            assert event["request_id"] not in found
            tokens = (event.get("prompt_tokens") or 0) + (event.get("completion_tokens") or 0)
            found[event["request_id"]] = tokens
        if not page["next_page_token"]:
            return found
        query["page_token"] = page["next_page_token"]
