"""Several processes on one port: who shares it, who comes back, and who ends them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

_SERVICE = """
from services.kit import workers
workers.share_port()
import os
from contextlib import asynccontextmanager
from services.kit import server, settings

@asynccontextmanager
async def app(grpc_server, health):
    folder = workers.own(settings.Path(os.environ["FOLDER"]))
    folder.mkdir(exist_ok=True)
    (folder / "pid").write_text(str(os.getpid()))
    yield ()

server.run("test", settings.load(settings.ServiceSettings), app)
"""


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def _started(folder: Path, **env: str) -> Iterator["subprocess.Popen[str]"]:
    script = folder / "service.py"
    script.write_text(_SERVICE)
    env = {**os.environ, "FOLDER": str(folder), "INFERMESH_WORKERS": "2", **env}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [sys.executable, str(script)], env=env, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _pids(folder: Path) -> tuple[int, int]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            return int((folder / "pid").read_text()), int((folder / "worker-1/pid").read_text())
        except (OSError, ValueError):
            time.sleep(0.05)
    raise AssertionError("the workers did not start")


def _is_serving(port: int) -> bool:
    # A pool of its own for each call: each is then a connection of its own.
    with grpc.insecure_channel(
        f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        answer = stub.Check(request, timeout=10, wait_for_ready=True)
        return answer.status == health_pb2.HealthCheckResponse.SERVING


def _until_owned(port: int, pids: set[int]) -> None:
    """Waits until all of the processes have taken connections on the port."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        holders = _holders(port)
        if pids <= holders:
            return
        time.sleep(0.05)
    raise AssertionError(f"{pids} do not share the port, {holders} do")


def _holders(port: int) -> set[int]:
    listed = subprocess.run(
        ["ss", "-Hltnp", f"sport = :{port}"], capture_output=True, text=True, check=True
    )
    return {int(part.split(",")[0]) for part in listed.stdout.split("pid=")[1:]}


def test_two_share_a_port_and_one_that_dies_comes_back(tmp_path: Path) -> None:
    port = _free_port()
    with _started(tmp_path, INFERMESH_LISTEN=f"127.0.0.1:{port}") as parent:
        first, second = _pids(tmp_path)
        assert len({first, second, parent.pid}) == 3
        _until_owned(port, {first, second})
        assert all(_is_serving(port) for _ in range(8))

        os.kill(second, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while _pids(tmp_path)[1] == second:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        again = _pids(tmp_path)[1]
        _until_owned(port, {first, again})
        assert _pids(tmp_path)[0] == first
        assert all(_is_serving(port) for _ in range(8))

        parent.terminate()
        assert parent.wait(10) == 0
        for pid in (first, again):
            assert not Path(f"/proc/{pid}").exists()


def test_they_end_with_their_parent(tmp_path: Path) -> None:
    port = _free_port()
    with _started(tmp_path, INFERMESH_LISTEN=f"127.0.0.1:{port}") as parent:
        pids = _pids(tmp_path)
        parent.kill()
        parent.wait(5)
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"INFERMESH_WORKERS": "none"}, "INFERMESH_WORKERS"),
        ({"INFERMESH_WORKERS": "65"}, "INFERMESH_WORKERS"),
        ({"INFERMESH_LOG_LEVEL": "LOUD"}, "INFERMESH_LOG_LEVEL"),
    ],
)
def test_settings_that_are_wrong_end_it(tmp_path: Path, env: dict[str, str], said: str) -> None:
    with _started(tmp_path, INFERMESH_LISTEN="127.0.0.1:1", **env) as parent:
        assert parent.wait(30) == 2
        assert parent.stderr is not None
        assert said in parent.stderr.read()


def test_a_service_whose_processes_would_have_to_know_of_each_other_has_one(
    tmp_path: Path,
) -> None:
    env = {
        **os.environ,
        "INFERMESH_WORKERS": "2",
        "INFERMESH_DATABASE_URL": "postgresql+asyncpg://x/y",
    }
    ran = subprocess.run(
        [sys.executable, "-m", "services.metrics"], env=env, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert "runs in one process" in ran.stderr
