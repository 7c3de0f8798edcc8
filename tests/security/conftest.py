"""A mesh of its own for the attacks, and a look at it after each of them."""

import signal
from collections.abc import Iterator

import pytest

from e2e.mesh import CHAT, start_mesh
from security.target import BASE_PORT, PAGE, PORT, Target

_PARTS = ("auth", "registry", "routing", "metrics", "embeddings", "envoy", "node-1")


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    mesh = start_mesh(
        tmp_path_factory.mktemp("security") / "state",
        PORT,
        BASE_PORT,
        "--nodes=1",
        f"--cors-origin={PAGE}",
    )
    try:
        mesh.wait("nodes", lambda: mesh.ready_nodes() >= {"node-1", "node-embed"}, 60)
        with mesh.http() as http:
            rules = {"allowed_models": [CHAT]}
            made = http.post("/mesh/v1/keys", json={"display_name": "attacker", "rules": rules})
        user_key = made.raise_for_status().json()["secret"]
        target = Target(mesh, user_key, {name: mesh.part(name).pid for name in _PARTS})
        mesh.wait("a chat", lambda: target.chat().status_code == 200)
        yield target
    finally:
        mesh.process.send_signal(signal.SIGINT)
        mesh.process.wait(60)


@pytest.fixture(autouse=True)
def nothing_got_in(target: Target) -> Iterator[None]:
    yield
    target.assert_nothing_got_in()


@pytest.fixture(autouse=True, scope="module")
def nothing_fell_over(target: Target) -> Iterator[None]:
    yield
    target.assert_nothing_fell_over()
