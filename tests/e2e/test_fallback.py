"""A model whose nodes are gone is answered for by another; an alias stands for several."""

import collections
from collections.abc import Iterator

import httpx
import pytest

from e2e.fleet import Fleet
from e2e.mesh import Mesh

MAIN, SPARE = "fb-main", "fb-spare"
ALIAS = "fb-alias"


@pytest.fixture(scope="module")
def urls(fleet: Fleet) -> dict[str, str]:
    urls = [*fleet.engines(2, MAIN), *fleet.engines(1, SPARE)]
    nodes = ("fb-gpu", "fb-cloud", "fb-other")
    fleet.join(
        {
            "fb-gpu": ("--engine", "sim", "--url", urls[0]),
            "fb-cloud": ("--engine", "sim", "--url", urls[1], "--tier", "2"),
            "fb-other": ("--engine", "sim", "--url", urls[2]),
        }
    )
    return dict(zip(nodes, urls, strict=True))


@pytest.fixture
def http(mesh: Mesh, urls: dict[str, str]) -> Iterator[httpx.Client]:
    with mesh.http() as http:
        yield http


def chat(http: httpx.Client, model: str, **fields: object) -> httpx.Response:
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": model, "messages": messages, "max_tokens": 2} | fields
    return http.post("/v1/chat/completions", json=body)


def answered(reply: httpx.Response) -> tuple[str, str]:
    """Returns the model and the node that answered."""
    assert reply.status_code == 200, reply.text
    return reply.json()["model"], reply.headers["x-mesh-node"]


def drain(http: httpx.Client, *nodes: str, back: bool = False) -> None:
    verb = "resume" if back else "drain"
    for node in nodes:
        http.post(f"/mesh/v1/nodes/{node}:{verb}", json={}).raise_for_status()


@pytest.fixture
def no_main(http: httpx.Client, mesh: Mesh) -> Iterator[None]:
    """No node takes calls for the model."""
    drain(http, "fb-gpu", "fb-cloud")
    mesh.wait("drain", lambda: chat(http, MAIN).status_code == 503)
    yield
    drain(http, "fb-gpu", "fb-cloud", back=True)
    mesh.wait("resume", lambda: answered(chat(http, MAIN))[1] == "fb-gpu")


def test_the_callers_own_fallbacks(http: httpx.Client, no_main: None) -> None:
    assert chat(http, MAIN).json()["error"]["code"] == "no_node_available"
    asked = ["fb-none", SPARE]
    assert answered(chat(http, MAIN, fallback_models=asked)) == (SPARE, "fb-other")
    streamed = chat(http, MAIN, fallback_models=asked, stream=True)
    assert streamed.status_code == 200
    assert f'"model":"{SPARE}"' in streamed.text
    # Nobody has the first: the catalogue does not know it either.
    assert answered(chat(http, "fb-none", fallback_models=[SPARE])) == (SPARE, "fb-other")


def test_the_models_own_chain(http: httpx.Client, fleet: Fleet, no_main: None) -> None:
    fleet.command("policies", "use", MAIN, "--fallback", "fb-none", "--fallback", SPARE)
    try:
        assert answered(chat(http, MAIN)) == (SPARE, "fb-other")
        # The caller's list takes its place.
        assert chat(http, MAIN, fallback_models=["fb-none"]).status_code == 503
    finally:
        http.delete(f"/mesh/v1/model-routes/{MAIN}").raise_for_status()
    assert chat(http, MAIN).status_code == 503


def test_a_fallback_is_not_asked_while_the_model_is_there(http: httpx.Client) -> None:
    found = {answered(chat(http, MAIN, fallback_models=[SPARE])) for _ in range(6)}
    assert found == {(MAIN, "fb-gpu")}


def test_an_engine_that_refuses_is_not_fallen_back_from(http: httpx.Client) -> None:
    refused = chat(http, MAIN, fallback_models=[SPARE], max_tokens=-1)
    assert refused.status_code == 400


def test_a_lower_tier_first_and_the_next_when_it_fails(
    http: httpx.Client, fleet: Fleet, urls: dict[str, str]
) -> None:
    assert {answered(chat(http, MAIN)) for _ in range(8)} == {(MAIN, "fb-gpu")}
    fleet.fault(urls["fb-gpu"], error_rate=1)
    try:
        # The engine answers its health check: Envoy walks the list, call by call.
        assert {answered(chat(http, MAIN)) for _ in range(4)} == {(MAIN, "fb-cloud")}
        fleet.fault(urls["fb-cloud"], error_rate=1)
        found = answered(chat(http, MAIN, fallback_models=[SPARE]))
        assert found == (SPARE, "fb-other")
    finally:
        fleet.fault(urls["fb-gpu"])
        fleet.fault(urls["fb-cloud"])


@pytest.fixture
def alias(http: httpx.Client, fleet: Fleet, mesh: Mesh) -> Iterator[str]:
    # What failed a moment ago may still be left out by Envoy.
    mesh.wait("healing", lambda: answered(chat(http, MAIN))[1] == "fb-gpu", 40)
    fleet.command("splits", "set", ALIAS, f"{MAIN}=90", f"{SPARE}=10", "--sticky-by", "user")
    yield ALIAS
    fleet.command("splits", "delete", ALIAS)
    assert chat(http, ALIAS).status_code == 404


def test_a_split_shares_sticks_counts_and_changes(
    http: httpx.Client, fleet: Fleet, mesh: Mesh, alias: str
) -> None:
    taken = collections.Counter(answered(chat(http, alias))[0] for _ in range(100))
    assert taken[SPARE] == pytest.approx(10, abs=2)
    assert taken.total() == 100

    users = {f"user-{n}": answered(chat(http, alias, user=f"user-{n}"))[0] for n in range(60)}
    assert 1 <= collections.Counter(users.values())[SPARE] <= 16
    some = list(users.items())[:10]
    assert all(answered(chat(http, alias, user=user))[0] == model for user, model in some)
    taken.update(users.values())
    taken.update(model for _, model in some)

    def counted() -> bool:
        split = http.get(f"/mesh/v1/splits/{alias}").raise_for_status().json()
        return {each["model"]: int(each["calls"]) for each in split["targets"]} == dict(taken)

    mesh.wait("counts", counted)
    assert alias in fleet.command("splits", "list").stdout

    change = {"targets": [{"model": MAIN, "weight": 0}, {"model": SPARE, "weight": 1}]}
    http.patch(f"/mesh/v1/splits/{alias}", json=change).raise_for_status()
    assert {answered(chat(http, alias))[0] for _ in range(5)} == {SPARE}


def test_bad_splits_are_refused_and_the_old_one_stays(http: httpx.Client, alias: str) -> None:
    for targets in (
        [{"model": alias, "weight": 1}],
        [{"model": MAIN, "weight": 0}],
        [{"model": MAIN, "weight": -1}],
        [{"model": MAIN, "weight": 1}, {"model": MAIN, "weight": 1}],
    ):
        reply = http.patch(f"/mesh/v1/splits/{alias}", json={"targets": targets})
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["param"], reply.text
    taken = http.post(
        "/mesh/v1/splits", json={"alias": MAIN, "targets": [{"model": SPARE, "weight": 1}]}
    )
    assert (taken.status_code, taken.json()["error"]["param"]) == (400, "split.alias")
    assert {answered(chat(http, alias, user="user-1"))[0] for _ in range(3)} <= {MAIN, SPARE}
