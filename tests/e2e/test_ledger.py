"""The ledger holds every request once, with the tokens that its answer said."""

import json

from e2e.mesh import CHAT, EMBED, Mesh


def test_rows_equal_requests_and_tokens_equal_answers(mesh: Mesh) -> None:
    with mesh.http() as admin:
        made = admin.post("/mesh/v1/keys", json={"display_name": "ledger", "tenant": "acme"}).json()
    key_id, wanted = made["key"]["key_id"], {}
    with mesh.http(made["secret"]) as http:
        for number in range(12):
            if number == 6:
                mesh.kill("metrics")
            body = {
                "model": CHAT,
                "messages": [{"role": "user", "content": f"Say {number}."}],
                "max_tokens": 4 + number % 3,
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
            wanted[reply.headers["x-request-id"]] = (
                usage["prompt_tokens"],
                usage["completion_tokens"],
            )
        for _ in range(2):  # the second is answered from the cache
            reply = http.post("/v1/embeddings", json={"model": EMBED, "input": ["one", "two two"]})
            wanted[reply.headers["x-request-id"]] = (reply.json()["usage"]["prompt_tokens"], 0)

    mesh.wait_whole()
    with mesh.http() as admin:

        def rows() -> list[dict[str, object]]:
            found = admin.get("/mesh/v1/usage/events", params={"key_id": key_id}).json()["events"]
            return found if len(found) >= len(wanted) else []

        events = mesh.wait("ledger", rows)
        assert len(events) == len(wanted)
        got = {e["request_id"]: (e["prompt_tokens"], e["completion_tokens"]) for e in events}
        assert got == wanted
        for event in events:
            assert event["outcome"] == "OUTCOME_OK"
            assert event["tenant"] == "acme"
            assert event["node_id"] in ("node-1", "node-2", "embeddings")
            assert float(event["duration"].rstrip("s")) > 0
        cached = [e for e in events if e["node_id"] == "embeddings"]
        assert sorted(e.get("cached_tokens") or 0 for e in cached)[-1] == cached[0]["prompt_tokens"]
        totals = admin.get("/mesh/v1/usage", params={"key_id": key_id}).json()["totals"]
        assert {t["model"]: int(t["request_count"]) for t in totals} == {CHAT: 12, EMBED: 2}
        assert sum(int(t["prompt_tokens"]) for t in totals) == sum(p for p, _ in wanted.values())
        assert sum(int(t["completion_tokens"]) for t in totals) == sum(
            c for _, c in wanted.values()
        )


def test_prometheus_text(mesh: Mesh) -> None:
    with mesh.http() as http:
        http.post("/v1/embeddings", json={"model": EMBED, "input": "metrics"}).raise_for_status()
        text = mesh.wait(
            "metrics",
            lambda: (t := http.get("/metrics").text) and "infermesh_requests_total{" in t and t,
        )
    assert 'part="auth"' in text
