"""Answers that are given again, over three nodes behind the real front door."""

import json
import time

import anthropic
import httpx
import pytest

from e2e.fleet import Fleet
from e2e.mesh import EMBED, Mesh

MODEL = "repeating"
NODES = 3
PROMPTS = 30


@pytest.fixture(scope="module", autouse=True)
def nodes(fleet: Fleet) -> None:
    urls = fleet.engines(NODES, MODEL, "--decode-rate", "200")
    fleet.join({f"repeating-{i}": ("--url", url) for i, url in enumerate(urls)})


def ask(http: httpx.Client, text: str, **fields: object) -> httpx.Response:
    messages = [{"role": "user", "content": text}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 20, "enable_caching": True}
    return http.post("/v1/chat/completions", json={**body, **fields}).raise_for_status()


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_asked_before_is_answered_at_once(mesh: Mesh, stream: bool) -> None:
    with mesh.http() as http:
        first = [ask(http, f"Short question {i}?", stream=stream) for i in range(PROMPTS)]
        began = time.monotonic()
        again = [ask(http, f"Short question {i}?", stream=stream) for i in range(PROMPTS)]
        took_s = (time.monotonic() - began) / PROMPTS
    assert {each.headers["x-mesh-cache"] for each in first} == {"miss"}
    hits = [each.headers["x-mesh-cache"] for each in again].count("hit")
    nodes = {each.headers["x-mesh-node"] for each in first}
    print(f"stream={stream}: {hits} of {PROMPTS} hits over {nodes}, {1000 * took_s:.1f} ms each")
    # Routing brings even short questions back to where they were answered.
    assert hits >= 0.9 * PROMPTS
    assert len(nodes) > 1
    for before, after in zip(first, again, strict=True):
        if after.headers["x-mesh-cache"] == "hit":
            assert after.content == before.content
            assert after.headers["content-type"] == before.headers["content-type"]
            assert after.headers["x-mesh-node"] == before.headers["x-mesh-node"]


def test_a_hit_is_in_the_ledger(mesh: Mesh) -> None:
    with mesh.http() as http:
        # A node that was not asked before answers anew.
        made, *later = (ask(http, "And what of the ledger?") for _ in range(NODES + 1))
        given = next(each for each in later if each.headers["x-mesh-cache"] == "hit")

        def event(answer: httpx.Response) -> dict[str, object]:
            params = {"request_id": answer.headers["x-request-id"]}
            return mesh.wait(
                "the ledger",
                lambda: http.get("/mesh/v1/usage/events", params=params).json()["events"],
            )[0]

        usage = made.json()["usage"]
        assert event(made)["completion_tokens"] == usage["completion_tokens"] == 20
        hit = event(given)
        assert hit["outcome"] == "OUTCOME_OK"
        assert hit["completion_tokens"] == 0
        assert hit["prompt_tokens"] == hit["cached_tokens"] == usage["prompt_tokens"]


def test_who_does_not_ask_gets_a_new_answer(mesh: Mesh) -> None:
    with mesh.http() as http:
        for fields in ({"enable_caching": False}, {"enable_caching": None}, {"temperature": 0}):
            fields = {"enable_caching": None, **fields}
            for _ in range(2):
                assert "x-mesh-cache" not in ask(http, "Again?", **fields).headers


def test_anthropics_dialect_too(mesh: Mesh) -> None:
    with anthropic.Anthropic(base_url=mesh.url, api_key=mesh.admin_key, max_retries=0) as client:
        said = []
        for _ in range(NODES + 1):
            raw = client.messages.with_raw_response.create(
                model=MODEL,
                max_tokens=20,
                messages=[{"role": "user", "content": "In your own words?"}],
                extra_body={"enable_caching": True},
            )
            said.append((raw.headers["x-mesh-cache"], json.dumps(raw.parse().to_dict()["content"])))
    # A node that was not asked before answers anew, in the simulator's same words.
    assert said[0][0] == "miss"
    assert {each[0] for each in said[1:]} >= {"hit"}
    assert len({each[1] for each in said}) == 1


def _key(http: httpx.Client, fields: dict[str, str]) -> str:
    secret: str = http.post("/mesh/v1/keys", json=fields).raise_for_status().json()["secret"]
    return secret


def test_a_question_in_other_words(mesh: Mesh, fleet: Fleet) -> None:
    (url,) = fleet.engines(1, "near", "--decode-rate", "50")
    settings = {
        "SEMANTIC_CACHE_MODELS": "near",
        "SEMANTIC_CACHE_EMBEDDING_MODEL": EMBED,
        "SEMANTIC_CACHE_THRESHOLD": "0.9",
        # The machine is busy: the vector may take its time.
        "SEMANTIC_CACHE_TIMEOUT_MS": "5000",
    }
    fleet.join({"near": ("--url", url)}, **settings)

    def say(http: httpx.Client, text: str, **fields: object) -> tuple[str | None, float, str]:
        answer = ask(http, text, model="near", max_tokens=50, **fields)
        near = float(answer.headers.get("x-mesh-cache-similarity", "0"))
        return answer.headers.get("x-mesh-cache"), near, answer.text

    key = {"display_name": "near", "tenant": "elsewhere"}
    with mesh.http() as http, mesh.http(_key(http, key)) as other:
        for stream in (False, True):
            first = say(http, "Name three colours.", stream=stream)
            again = say(http, "Please name three colours", stream=stream)
            assert first[:2] == ("miss", 0)
            assert again[0] == "hit"
            assert 0.9 < again[1] < 1
            assert again[2] == first[2]
        assert say(http, "Name three animals.")[0] == "miss"
        assert say(http, "Do not name three colours.")[0] == "miss"
        assert say(http, "Please, name three colours", temperature=0.3)[0] == "miss"
        assert say(other, "Please name three colours.")[0] == "miss"


def test_a_key_says_whether_it_wants_earlier_answers(mesh: Mesh) -> None:
    cold = {"enable_caching": None, "temperature": 0}
    with mesh.http() as http:
        for caching, fields, said in (
            ("CACHING_OFF", {"enable_caching": True}, {None}),
            # Routing does not know what keys say: one call more than there are nodes.
            ("CACHING_ON", cold, {"miss", "hit"}),
            ("CACHING_ON", {"enable_caching": None}, {None}),
        ):
            key = {"display_name": "caching", "tenant": "caching", "rules": {"caching": caching}}
            with mesh.http(_key(http, key)) as caller:
                answers = [ask(caller, "And the key?", **fields) for _ in range(NODES + 1)]
            assert {each.headers.get("x-mesh-cache") for each in answers} == said
