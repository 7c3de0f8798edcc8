"""`infermesh up` as a person meets it: start, second start, stop, and the ways to die."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from e2e.mesh import REPOSITORY, Mesh, family, start_mesh


def up(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli", "up", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def survivors(processes: list[psutil.Process], limit_s: float = 20.0) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=limit_s)
    return [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_secrets_are_private(mesh: Mesh) -> None:
    assert stat.S_IMODE(mesh.state_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((mesh.state_dir / "admin.key").stat().st_mode) == 0o600
    assert mesh.admin_key not in mesh.output.read_text()


def test_a_second_up_says_so_and_touches_nothing(mesh: Mesh) -> None:
    before = {p.pid for p in family(mesh)}
    done = up("--state-dir", str(mesh.state_dir), "--port", "18081", "--base-port", "18100")
    assert done.returncode != 0
    assert "running" in done.stdout + done.stderr
    assert {p.pid for p in family(mesh)} == before


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 19101))
        holder.listen()
        done = up(
            *("--state-dir", str(tmp_path / "s"), "--port", "19080", "--base-port", "19100"),
        )
    assert done.returncode != 0
    assert "19101" in done.stdout + done.stderr


def test_every_part_comes_back(mesh: Mesh) -> None:
    for name in ("auth", "node-1", "redis"):
        old = mesh.kill(name)
        mesh.wait(f"new {name}", lambda name=name, old=old: mesh.part(name).pid != old)
    mesh.wait_whole()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind(tmp_path: Path, number: signal.Signals) -> None:
    other = start_mesh(tmp_path / "state", port=19080, base_port=19000)
    everybody = family(other)
    assert len(everybody) > 12
    began = time.monotonic()
    os.kill(other.process.pid, number)
    other.process.wait(30)
    assert survivors(everybody) == []
    # Nothing had to be killed for want of an answer, one after the other.
    assert time.monotonic() - began < 20
    if number == signal.SIGKILL:  # what a hard death leaves does not stop the next start
        again = start_mesh(tmp_path / "state", port=19080, base_port=19000)
        everybody = family(again)
        again.process.send_signal(signal.SIGINT)
        again.process.wait(30)
        assert survivors(everybody) == []
