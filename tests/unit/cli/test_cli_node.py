import json
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


def test_what_the_operator_says_reaches_the_node(monkeypatch, tmp_path):
    arguments = ["--engine", "vllm", "--tier", "2", "--label", "zone=a", "--label", "gpu=h100"]
    arguments += ["--price", "org/m:v1=0.5:1.5", "--engine-arg=--x", "--engine-arg", "y"]
    _, (env,) = join(monkeypatch, tmp_path, *arguments)
    assert (env["INFERMESH_ENGINE"], env["INFERMESH_TIER"]) == ("vllm", "2")
    assert json.loads(env["INFERMESH_LABELS"]) == {"zone": "a", "gpu": "h100"}
    assert json.loads(env["INFERMESH_PRICES"]) == {"org/m:v1": [0.5, 1.5]}
    assert json.loads(env["INFERMESH_RUN_ARGS"]) == ["--x", "y"]
    # Answers that flow when the node is told to stop have time to end.
    assert env["INFERMESH_DRAIN_S"] == "120"


def test_an_engine_that_is_not_named_is_asked(monkeypatch, tmp_path):
    _, (env,) = join(monkeypatch, tmp_path)
    assert (env["INFERMESH_ENGINE"], env["INFERMESH_RUN_MODEL"]) == ("auto", "")


@pytest.mark.parametrize("way", ["environment", "file", "option"])
def test_a_token_takes_the_place_of_a_key(monkeypatch, tmp_path, way):
    started = []
    monkeypatch.setattr(os, "execve", lambda path, argv, env: started.append((argv, env)))
    file = tmp_path / "token"
    file.write_text("im-token\n")
    arguments = ["node", "--join", "127.0.0.1:8080", "--url", "http://127.0.0.1:1"]
    arguments += ["--state-dir", str(tmp_path / "state")]
    arguments += {"file": ["--token-file", str(file)], "option": ["--token", "im-token"]}.get(
        way, []
    )
    env = {"INFERMESH_NODE_TOKEN": "im-token"} if way == "environment" else {}
    done = CliRunner().invoke(app, arguments, env=env)
    assert done.exit_code == 0, done.output
    [(argv, env)] = started
    assert (env["INFERMESH_NODE_TOKEN"], env["INFERMESH_NODE_KEY"]) == ("im-token", "")
    assert "im-token" not in argv


def test_the_node_can_start_its_engine(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(os, "execve", lambda path, argv, env: started.append(env))
    model = tmp_path / "m.gguf"
    model.touch()
    base = ["node", "--join", "127.0.0.1:8080", "--key", "im-k", "--state-dir", str(tmp_path)]
    for arguments, dialect, runs in (
        (["--model-file", str(model)], "llamacpp", str(model)),
        (["--engine", "sim", "--serve", "m"], "sim", "m"),
    ):
        done = CliRunner().invoke(app, [*base, *arguments])
        assert done.exit_code == 0, done.output
        env = started[-1]
        assert (env["INFERMESH_ENGINE"], env["INFERMESH_RUN_MODEL"]) == (dialect, runs)
        assert env["INFERMESH_ENGINE_URL"].startswith("http://127.0.0.1:172")
    for wrong in (
        [],
        ["--serve", "m"],
        ["--engine", "vllm", "--model-file", str(model)],
        ["--engine", "sim", "--serve", "m", "--url", "http://127.0.0.1:1"],
        ["--engine", "sim", "--serve", "m", "--model-file", str(model)],
    ):
        assert CliRunner().invoke(app, [*base, *wrong]).exit_code == 2, wrong
    assert len(started) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        *(("--label", "zone"), ("--label", "Zone=a"), ("--price", "m=1"), ("--price", "m=x:1")),
        *(("--price", "m=1.2.3:1"), ("--tier", "10"), ("--engine", "gpt")),
    ],
)
def test_what_makes_no_sense_starts_nothing(monkeypatch, tmp_path, wrong):
    done, started = join(monkeypatch, tmp_path, *wrong)
    assert (done.exit_code, started) == (2, [])
