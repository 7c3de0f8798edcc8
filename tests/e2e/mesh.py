"""The real mesh, started as a person starts it, on ports of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil

from e2e import admin_socket

REPOSITORY = Path(__file__).parents[2]
PORT = int(os.environ.get("E2E_PORT", "18080"))
BASE_PORT = int(os.environ.get("E2E_BASE_PORT", "18000"))
CHAT = "smollm2-135m"
EMBED = "all-minilm-l6-v2"


@dataclass
class Mesh:
    """A running mesh."""

    process: subprocess.Popen[bytes]
    state_dir: Path
    output: Path
    port: int = PORT

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def admin_key(self) -> str:
        return (self.state_dir / "admin.key").read_text().strip()

    def openai(self, key: str | None = None, *, strict: bool = False) -> openai.OpenAI:
        """Returns the SDK; where it is strict, it raises on answers that are not as it says."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=key or self.admin_key,
            max_retries=0,
            timeout=60,
            _strict_response_validation=strict,
        )

    def http(self, key: str | None = None) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {key or self.admin_key}"},
            timeout=60,
        )

    def part(self, name: str) -> psutil.Process:
        """Returns the process of a part, found by what it was started with."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                words = " ".join(child.cmdline())
                node = child.environ().get("INFERMESH_NODE_ID")
                if node == name or (node is None and f"services.{name}" in words):
                    return child
                if name == "envoy" and words.split(" ")[0].endswith("_bin/envoy"):
                    return child
                if name.startswith("engine:") and f"--port {name.removeprefix('engine:')}" in words:
                    return child
                if name in ("redis", "postgres") and f"{name}" in words.split(" ")[0]:
                    return child
        raise LookupError(name)

    def part_words(self, *wanted: str) -> list[str]:
        """Returns the command of the first part whose command has all that is wanted in it."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                words = child.cmdline()
                if all(each in " ".join(words) for each in wanted):
                    return words
        raise LookupError(wanted)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        process = self.part(name)
        process.send_signal(number)
        return process.pid

    def wait(self, what: str, condition, limit_s: float = 30.0):
        """Waits until the condition gives something true, and returns it.

        What it raises meanwhile is no end: a part may be away, an answer not be what it will be.
        """
        deadline = time.monotonic() + limit_s
        last: object = None
        while time.monotonic() < deadline:
            try:
                if last := condition():
                    return last
            except (
                *(httpx.HTTPError, LookupError, psutil.Error, openai.OpenAIError),
                *(OSError, AssertionError),
            ) as error:
                last = error
            time.sleep(0.1)
        raise AssertionError(f"{what}: not within {limit_s} s, last was {last!r}")

    def ready_nodes(self) -> set[str]:
        with self.http() as http:
            nodes = http.get("/mesh/v1/nodes").raise_for_status().json()["nodes"]
        return {n["node_id"] for n in nodes if n["state"] == "NODE_STATE_READY"}

    def called_nodes(self) -> set[str]:
        """Returns the ready nodes that Envoy's own checks have found well too."""
        with self.http() as http:
            nodes = http.get("/mesh/v1/nodes").raise_for_status().json()["nodes"]
        healthy = admin_socket.healthy(self)
        return {
            n["node_id"]
            for n in nodes
            if n["state"] == "NODE_STATE_READY" and n["address"] in healthy
        }

    def wait_whole(self, limit_s: float = 60.0) -> None:
        """Waits until every part serves and chats are answered by both nodes."""
        self.wait("front door", lambda: httpx.get(f"{self.url}/health").status_code == 200, limit_s)
        wanted = {"node-1", "node-2", "node-embed"}
        self.wait("nodes", lambda: self.ready_nodes() >= wanted, limit_s)
        self.wait("nodes for Envoy", lambda: self.called_nodes() >= wanted, limit_s)

        def all_serve() -> bool:
            with self.http() as http:
                services = http.get("/mesh/v1/health").raise_for_status().json()["services"]
            return all(s["serving"] for s in services)

        self.wait("services", all_serve, limit_s)


def start_mesh(
    state_dir: Path, port: int = PORT, base_port: int = BASE_PORT, *options: str
) -> Mesh:
    output = state_dir.parent / f"{state_dir.name}.out"
    command = [
        *(sys.executable, "-m", "services.cli", "up"),
        *("--state-dir", str(state_dir), "--port", str(port), "--base-port", str(base_port)),
        *options,
    ]
    with output.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    mesh = Mesh(process, state_dir, output, port)
    try:
        mesh.wait(
            "start", lambda: process.poll() is not None or "Bearer" in output.read_text(), 110
        )
        assert process.poll() is None
    except AssertionError:
        process.kill()
        raise AssertionError(output.read_text()) from None
    return mesh


def family(mesh: Mesh) -> list[psutil.Process]:
    parent = psutil.Process(mesh.process.pid)
    return [parent, *parent.children(recursive=True)]
