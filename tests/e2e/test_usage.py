"""What calls cost by the ledger is what a person reckons from the answers, to the last digit."""

import csv
import io
import json
import subprocess
import sys
import time
from decimal import Decimal

from e2e.mesh import CHAT, EMBED, REPOSITORY, Mesh

# For a million tokens: the prompt, what of it was cached, what is made.
PRICES = {
    CHAT: ("0.123457", "0.000001", "987.654321"),
    EMBED: ("0.02", "0.005", "0"),
}
ALIAS = "usage-alias"


def _cost(model: str, usage: dict[str, int], cached: int) -> Decimal:
    prompt, cached_prompt, made = map(Decimal, PRICES[model])
    spent = (usage["prompt_tokens"] - cached) * prompt + cached * cached_prompt
    return (spent + usage.get("completion_tokens", 0) * made) / 1_000_000


def _chat(http, model: str, number: int) -> tuple[str, dict[str, int]]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Count to {number}."}],
        "max_tokens": 3 + number,
        "stream": number % 2 == 1,
    }
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    reply = http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    if body["stream"]:
        events = [line[6:] for line in reply.text.split("\n") if line.startswith("data: {")]
        usage = next(u for e in reversed(events) if (u := json.loads(e).get("usage")))
    else:
        usage = reply.json()["usage"]
    return reply.headers["x-request-id"], usage


def test_the_ledger_costs_what_a_person_reckons(mesh: Mesh) -> None:
    with mesh.http() as admin:
        for model, (prompt, cached, made) in PRICES.items():
            price = {"input_usd": prompt, "cached_input_usd": cached, "output_usd": made}
            reply = admin.put("/mesh/v1/prices", json={"price": {"model": model, **price}})
            assert reply.status_code == 200, reply.text
            got = admin.get(f"/mesh/v1/prices/{model}").json()
            assert {name: got[name] for name in price} == price
        split = {"alias": ALIAS, "targets": [{"model": CHAT, "weight": 1}]}
        assert admin.post("/mesh/v1/splits", json=split).status_code == 200
        key = {"display_name": "usage", "tenant": "usage-test", "project": "web"}
        made_key = admin.post("/mesh/v1/keys", json=key).json()
    key_id = made_key["key"]["key_id"]
    wanted: dict[str, tuple[str, dict[str, int]]] = {}
    with mesh.http(made_key["secret"]) as http:
        for number in range(6):
            request_id, usage = _chat(http, CHAT, number)
            wanted[request_id] = (CHAT, usage)
        aliased, usage = _chat(http, ALIAS, 2)
        wanted[aliased] = (CHAT, usage)
        for _ in range(2):  # the second is answered from the cache
            reply = http.post("/v1/embeddings", json={"model": EMBED, "input": ["three", "to two"]})
            wanted[reply.headers["x-request-id"]] = (EMBED, reply.json()["usage"])
        # What users may not see.
        assert http.get("/mesh/v1/usage").status_code == 403
        assert http.get("/mesh/v1/prices").status_code == 403

    with mesh.http() as admin:

        def rows() -> list[dict[str, str]]:
            found = admin.get("/mesh/v1/usage/events", params={"key_id": key_id}).json()["events"]
            return found if len(found) >= len(wanted) else []

        events = mesh.wait("ledger", rows)
        assert {each["request_id"] for each in events} == set(wanted)
        total = Decimal()
        for each in events:
            model, usage = wanted[each["request_id"]]
            cost = _cost(model, usage, int(each["cached_tokens"]))
            assert Decimal(each["cost_usd"]) == cost, each
            assert (each["tenant"], each["project"]) == ("usage-test", "web")
            asked = ALIAS if each["request_id"] == aliased else model
            assert (each["model"], each["requested_model"]) == (model, asked)
            total += cost
        assert total > 0
        by = [("group_by", f"USAGE_DIMENSION_{name}") for name in ("TENANT", "DAY")]
        asked_for = [*by, ("tenant", "usage-test")]
        sums = admin.get("/mesh/v1/usage", params=asked_for).json()["totals"]
        assert sum(Decimal(each["cost_usd"]) for each in sums) == total
        assert sum(int(each["request_count"]) for each in sums) == len(wanted)
        assert sum(int(each["unpriced_count"]) for each in sums) == 0
        export = admin.get("/mesh/v1/usage.csv", params=asked_for)
        assert export.headers["content-type"].startswith("text/csv")
        assert export.headers["content-disposition"] == 'attachment; filename="usage.csv"'
        lines = list(csv.DictReader(io.StringIO(export.text, newline="")))
        assert [line["cost_usd"] for line in lines] == [each["cost_usd"] for each in sums]
        text = admin.get("/metrics").text
        assert f'infermesh_cost_usd_total{{model="{CHAT}"}}' in text
        for model in PRICES:
            assert admin.delete(f"/mesh/v1/prices/{model}").status_code == 200
        assert admin.delete(f"/mesh/v1/splits/{ALIAS}").status_code == 200


def test_the_command_shows_it(mesh: Mesh) -> None:
    with mesh.http() as http:
        _chat(http, CHAT, 1)
    command = [sys.executable, "-m", "services.cli", "usage", "--by", "model"]
    options = ["--address", mesh.address, "--key", mesh.admin_key]
    deadline = time.monotonic() + 40
    while True:
        done = subprocess.run(
            command + options, cwd=REPOSITORY, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        if CHAT in done.stdout or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert CHAT in done.stdout


def test_no_one_reaches_what_only_services_call(mesh: Mesh) -> None:
    with mesh.http() as admin:
        for path in (
            "/infermesh.metrics.v1.UsageService/GetScopeTotals",
            "/infermesh.auth.v1.LimitService/SettleUsage",
        ):
            reply = admin.post(path, headers={"content-type": "application/grpc"}, content=b"")
            assert reply.status_code == 404 or reply.headers.get("grpc-status") not in (None, "0")
