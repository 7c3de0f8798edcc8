"""Policies of a model: set while it is called, and what each does to where its calls go."""

import collections
import time
from collections.abc import Iterator

import httpx
import pytest

from e2e.fleet import Fleet
from e2e.mesh import Mesh

MODEL = "pol"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
NODES = ("pol-cheap", "pol-dear")


@pytest.fixture(scope="module")
def urls(fleet: Fleet) -> dict[str, str]:
    urls = fleet.engines(2, MODEL, "--prefill-rate", "2000")
    prices = (f"{MODEL}=1:2", f"{MODEL}=5:10")
    fleet.join(
        {
            node: ("--engine", "sim", "--url", url, "--price", price, "--label", f"site={node}")
            for node, url, price in zip(NODES, urls, prices, strict=True)
        },
        ENGINE_SLOTS="32",
    )
    return dict(zip(NODES, urls, strict=True))


@pytest.fixture
def http(mesh: Mesh, urls: dict[str, str]) -> Iterator[httpx.Client]:
    with mesh.http() as http:
        yield http
        http.delete(f"/mesh/v1/model-routes/{MODEL}")


def use(http: httpx.Client, policy: str) -> None:
    reply = http.put(f"/mesh/v1/model-routes/{MODEL}", json={"policy": policy})
    assert reply.status_code == 200, reply.text


def nodes_of(http: httpx.Client, count: int, **fields: object) -> list[str]:
    """Sends chats one after the other, and returns who answered them."""
    answers = [http.post("/v1/chat/completions", json=BODY | fields) for _ in range(count)]
    assert {answer.status_code for answer in answers} == {200}, [a.text for a in answers]
    return [answer.headers["x-mesh-node"] for answer in answers]


def test_round_robin_takes_turns_from_the_next_call_on(http: httpx.Client) -> None:
    use(http, "cost")
    assert set(nodes_of(http, 6)) == {"pol-cheap"}
    use(http, "round_robin")
    assert collections.Counter(nodes_of(http, 20)) == {"pol-cheap": 10, "pol-dear": 10}
    use(http, "cost")
    assert set(nodes_of(http, 6)) == {"pol-cheap"}


def test_a_session_stays_where_it_is(http: httpx.Client) -> None:
    use(http, "session")
    homes = [set(nodes_of(http, 4, session_id=f"session-{n}")) for n in range(12)]
    assert all(len(home) == 1 for home in homes), homes
    assert set.union(*homes) == set(NODES)


@pytest.mark.parametrize(("level", "policy"), [("low", "cost"), ("high", "latency")])
def test_a_caller_says_what_matters(http: httpx.Client, level: str, policy: str) -> None:
    answer = http.post(
        "/v1/chat/completions",
        json=BODY | {"optimization_level": level},
        headers={"x-debug-mode": "true"},
    )
    assert answer.json()["gateway_metadata"]["policy"] == policy
    if level == "low":
        assert set(nodes_of(http, 6, optimization_level=level)) == {"pol-cheap"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"scorers": {"magic": 1}}, "policy.scorers.magic"),
        ({"scorers": {"queue": -1}}, "policy.scorers[queue]"),
        ({"scorers": {"queue": "NaN"}}, "policy.scorers[queue]"),
        ({"scorers": {"queue": 1}, "picker": "nope"}, "policy.picker"),
        ({"scorers": {}, "picker": "best_first"}, "policy.scorers"),
    ],
)
def test_a_bad_policy_is_refused_and_the_old_one_stays(
    http: httpx.Client, change: dict[str, object], param: str
) -> None:
    old = http.post("/mesh/v1/policies", json={"name": "pol-own", "scorers": {"cost": 1}})
    assert old.status_code == 200, old.text
    try:
        use(http, "pol-own")
        refused = http.patch("/mesh/v1/policies/pol-own", json=change)
        assert refused.status_code == 400, refused.text
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_argument", param)
        now = http.get("/mesh/v1/policies/pol-own").json()
        assert now["scorers"] == {"cost": 1}
        assert set(nodes_of(http, 4)) == {"pol-cheap"}
        assert http.delete("/mesh/v1/policies/pol-own").status_code == 400, "a model has it"
    finally:
        http.delete(f"/mesh/v1/model-routes/{MODEL}").raise_for_status()
        http.delete("/mesh/v1/policies/pol-own").raise_for_status()


def test_labels_and_the_command_line(http: httpx.Client, fleet: Fleet) -> None:
    fleet.command(
        *("policies", "set", "pol-site", "--scorer", "queue=1", "--allow", "site=pol-dear")
    )
    fleet.command("policies", "use", MODEL, "pol-site")
    assert set(nodes_of(http, 6)) == {"pol-dear"}
    listed = fleet.command("policies", "list").stdout
    assert "pol-site" in listed
    said = fleet.command("policies", "explain", MODEL).stdout
    assert "pol-dear" in said
    assert "pol-cheap" in said
    bad = fleet.command("policies", "set", "pol-site", "--scorer", "magic=1", check=False)
    assert (bad.returncode, "magic" in bad.stderr) == (1, True)
    assert set(nodes_of(http, 2)) == {"pol-dear"}
    fleet.command("policies", "use", MODEL)
    fleet.command("policies", "delete", "pol-site")
    assert "pol-site" not in fleet.command("policies", "list").stdout


def test_a_silent_node_is_hedged(
    http: httpx.Client, mesh: Mesh, fleet: Fleet, urls: dict[str, str]
) -> None:
    policy = {
        "name": "pol-hedged",
        "picker": "round_robin",
        "hedging": {"delay": "0.300s", "budget": 0.5},
    }
    assert http.post("/mesh/v1/policies", json=policy).status_code == 200
    use(http, "pol-hedged")
    # The budget goes by how long the first token takes as a rule.
    nodes_of(http, 4, stream=True)
    mesh.wait("reports", lambda: _first_tokens(http) == set(NODES))
    fleet.fault(urls["pol-cheap"], hang=True)
    try:
        began = time.monotonic()
        nodes = nodes_of(http, 4, stream=True)
        took_s = time.monotonic() - began
        print(f"4 streams, every second to a silent node first: {took_s:.2f} s")
        assert set(nodes) == {"pol-dear"}
        # Unhedged it would take for ever.
        assert 0.6 <= took_s < 15.0
        # The silent engine was told to stop: nothing runs there any more.
        mesh.wait("cancellation", lambda: _running(urls["pol-cheap"]) == 0)
    finally:
        fleet.fault(urls["pol-cheap"])
        use(http, "balanced")
        http.delete("/mesh/v1/policies/pol-hedged").raise_for_status()


def test_latency_goes_where_the_first_token_is_fast(
    http: httpx.Client, mesh: Mesh, fleet: Fleet, urls: dict[str, str]
) -> None:
    use(http, "round_robin")
    fleet.fault(urls["pol-cheap"], slow=150)
    try:
        nodes_of(http, 8, max_tokens=1, stream=True)
        use(http, "latency")

        def ttft_tells_them_apart() -> bool:
            said = http.get("/mesh/v1/routing:explain", params={"model": MODEL}).json()
            scores = {each["node_id"]: each["scores"]["ttft"] for each in said["candidates"]}
            return scores["pol-cheap"] < scores["pol-dear"] - 0.1

        mesh.wait("reports", ttft_tells_them_apart)
        # No cache draws, so that the time to the first token decides.
        share = collections.Counter(nodes_of(http, 10, max_tokens=1, enable_caching=False))
    finally:
        fleet.fault(urls["pol-cheap"])
    assert share["pol-dear"] >= 8, share


def _first_tokens(http: httpx.Client) -> set[str]:
    nodes = http.get("/mesh/v1/nodes").raise_for_status().json()["nodes"]
    return {n["node_id"] for n in nodes if "time_to_first_token" in n["load"]} & set(NODES)


def _running(url: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    (line,) = (each for each in lines if each.startswith("vllm:num_requests_running"))
    return float(line.rsplit(" ", 1)[1])
