import os
import socket

import pytest
from typer.testing import CliRunner

from services.cli.commands import node
from services.cli.main import app


@pytest.fixture
def no_free_port_but(monkeypatch):
    def only(free):
        monkeypatch.setattr("services.cli.ports.is_port_free", lambda host, port: port == free)

    return only


def test_a_node_of_a_mesh_on_loopback_listens_on_loopback(no_free_port_but):
    no_free_port_but(17123)
    for mesh in ("127.0.0.1:8080", "localhost:8080"):
        assert node.addresses("", "", mesh) == ("127.0.0.1:17123",) * 2


def test_an_address_that_was_chosen_stands():
    chosen = "10.0.0.7:17062"
    assert node.addresses(chosen, "", "127.0.0.1:8080") == (chosen, chosen)
    assert node.addresses(chosen, "10.1.1.1:1", "127.0.0.1:8080") == (chosen, "10.1.1.1:1")


def test_a_node_on_every_address_says_the_one_that_faces_the_mesh():
    found = node.addresses("0.0.0.0:17062", "", "127.0.0.1:8080")
    assert found == ("0.0.0.0:17062", "127.0.0.1:17062")


def join(monkeypatch, tmp_path, *arguments):
    started = []
    monkeypatch.setattr(os, "execve", lambda path, argv, env: started.append(env))
    done = CliRunner().invoke(
        app,
        [
            *("node", "--join", "127.0.0.1:8080", "--url", "http://127.0.0.1:1", "--key", "im-k"),
            *("--state-dir", str(tmp_path), *arguments),
        ],
    )
    return done, started


def test_a_node_has_a_folder_apart_from_the_meshs_own(monkeypatch, tmp_path):
    done, (env,) = join(monkeypatch, tmp_path, "--id", "redis")
    assert env["INFERMESH_STATE_DIR"] == str(tmp_path / "nodes" / "redis")
    assert env["INFERMESH_NODE_ID"] == "redis"
    assert done.stderr == f"redis listens on {env['INFERMESH_LISTEN']}.\n"


def test_a_node_is_called_like_its_host(monkeypatch, tmp_path):
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-7.example.org")
    _, (env,) = join(monkeypatch, tmp_path)
    assert env["INFERMESH_NODE_ID"] == "gpu-7"


@pytest.mark.parametrize(
    "wrong", [("--id", "../x"), ("--join", "no port"), ("--join", "127.0.0.1:99999")]
)
def test_a_wrong_option_starts_nothing(monkeypatch, tmp_path, wrong):
    done, started = join(monkeypatch, tmp_path, *wrong)
    assert (done.exit_code, started) == (2, [])
    assert list(tmp_path.iterdir()) == []
