"""The fixtures of the end-to-end tests."""

import signal
from collections.abc import Iterator

import openai
import psutil
import pytest

from e2e.fleet import Fleet
from e2e.fleet import fleet as make_fleet
from e2e.mesh import Mesh, family, start_mesh


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    mesh = start_mesh(tmp_path_factory.mktemp("mesh") / "state")
    mesh.wait_whole()
    yield mesh
    everybody = family(mesh)
    mesh.process.send_signal(signal.SIGINT)
    mesh.process.wait(60)
    _, alive = psutil.wait_procs(everybody, timeout=20)
    left = [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    assert not left, left


@pytest.fixture
def client(mesh: Mesh) -> Iterator[openai.OpenAI]:
    with mesh.openai() as client:
        yield client


@pytest.fixture(scope="module")
def fleet(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Engines and nodes of a module's own, gone after it."""
    with make_fleet(mesh, tmp_path_factory.mktemp("fleet")) as made:
        yield made
