"""Engines and nodes that a test adds to the running mesh, and that are gone after it."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import psutil

from e2e.mesh import REPOSITORY, Mesh

_LIMIT_S = 60.0
_NODE_STOP_S = 30.0
# The kernel hands out ports from 32768 on, the mesh has those up to 18080.
_FIRST, _LAST = 18200, 19000
# Two runs at a time begin at different ones.
_START = os.getpid() % (_LAST - _FIRST)
_PORTS = itertools.cycle([*range(_FIRST + _START, _LAST), *range(_FIRST, _FIRST + _START)])


def free_port() -> int:
    """Returns a TCP port on loopback that nothing listens on, and that nobody is given soon."""
    for port in _PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError("no port is free")


class Fleet:
    """Starts simulated engines and joins nodes, each as a process of its own.

    Args:
        mesh: Where the nodes join.
        folder: For their state and their output.
    """

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        self.mesh = mesh
        self._folder = folder
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._engines: list[subprocess.Popen[bytes]] = []

    def engines(self, count: int, model: str, *options: str) -> list[str]:
        """Starts simulated engines that serve `model`, and returns their URLs."""
        ports = [free_port() for _ in range(count)]
        command = [sys.executable, "-m", "services.inference.simulator", "--model", model, *options]
        for port in ports:
            command += ["--port", str(port)]
        self._engines.append(self._start(command, f"engine-{model}-{ports[0]}", {}))
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        for url in urls:
            self._until_up(url)
        return urls

    def fault(self, url: str, **switches: object) -> None:
        """Sets a simulated engine's faults; none heals it."""
        httpx.post(f"{url}/sim/faults", json=switches, timeout=20).raise_for_status()

    def token(self, *options: str) -> str:
        """Returns a join token as the command line makes it."""
        return self.command("nodes", "token", *options).stdout.strip()

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs `infermesh` as an operator of the mesh does."""
        done = subprocess.run(
            [sys.executable, "-m", "services.cli", *arguments],
            cwd=REPOSITORY,
            env=os.environ
            | {
                "INFERMESH_ADDRESS": self.mesh.address,
                "INFERMESH_KEY": self.mesh.admin_key,
                "COLUMNS": "160",
            },
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def node(
        self,
        node_id: str,
        *options: str,
        token: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Starts a node without waiting for it.

        Args:
            node_id: Its name.
            options: Further options of `infermesh node`.
            token: With what it joins; None for a new token.
            settings: Environment, without the prefix.
        """
        environment = {f"INFERMESH_{name}": value for name, value in (settings or {}).items()}
        environment["INFERMESH_NODE_TOKEN"] = self.token("--uses", "1") if token is None else token
        command = [
            *(sys.executable, "-m", "services.cli", "node", "--join", self.mesh.address),
            *("--id", node_id, "--listen", f"127.0.0.1:{free_port()}"),
            *("--state-dir", str(self._folder), *options),
        ]
        process = self._nodes[node_id] = self._start(command, node_id, environment)
        return process

    def join(self, nodes: Mapping[str, tuple[str, ...]], **settings: str) -> None:
        """Starts nodes by id and options, and waits until all are ready.

        Args:
            nodes: Options of `infermesh node` by the node's id.
            settings: Environment of all of them, without the prefix.
        """
        token = self.token("--uses", str(len(nodes)))
        for node_id, options in nodes.items():
            self.node(node_id, *options, token=token, settings=settings)
        self.wait_ready(*nodes)

    def wait_ready(self, *node_ids: str) -> None:
        """Waits until nodes are in the mesh, and routing and Envoy know it."""
        try:
            self.mesh.wait("nodes", lambda: self.mesh.ready_nodes() >= set(node_ids), _LIMIT_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.outputs(*node_ids)}") from None
        for node_id in node_ids:
            self.mesh.wait(f"{node_id} routed to", lambda each=node_id: self._is_routed(each))
        self.mesh.wait("nodes for Envoy", lambda: self.mesh.called_nodes() >= set(node_ids))

    def _is_routed(self, node_id: str) -> bool:
        with self.mesh.http() as http:
            node = http.get(f"/mesh/v1/nodes/{node_id}").raise_for_status().json()
            found = http.get(
                "/mesh/v1/routing:explain", params={"model": node["models"][0]["name"]}
            ).raise_for_status()
        return node_id in found.json()["ordered_node_ids"]

    def stop(self, node_id: str) -> int:
        """Ends a node as Ctrl-C does, and returns its exit status."""
        process = self._nodes[node_id]
        process.send_signal(signal.SIGINT)
        return process.wait(_NODE_STOP_S)

    def process(self, node_id: str) -> psutil.Process:
        """Returns the process of a node."""
        return psutil.Process(self._nodes[node_id].pid)

    def outputs(self, *node_ids: str) -> str:
        """Returns what nodes printed."""
        return "\n".join((self._folder / f"{each}.out").read_text() for each in node_ids)

    def close(self) -> None:
        """Ends nodes and engines, and has the mesh forget the nodes."""
        for process in self._nodes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in [*self._nodes.values(), *self._engines]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_NODE_STOP_S if process not in self._engines else 0)
            if process.poll() is None:
                process.kill()
                process.wait()
        with self.mesh.http() as http:
            for node_id in self._nodes:
                self.mesh.wait(f"{node_id} deleted", lambda each=node_id: _delete(http, each))

    def _start(
        self, command: list[str], name: str, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.out").open("wb") as out:
            return subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @staticmethod
    def _until_up(url: str) -> None:
        deadline = time.monotonic() + _LIMIT_S
        while True:
            try:
                httpx.get(f"{url}/health", timeout=5).raise_for_status()
                return
            except httpx.HTTPError:
                assert time.monotonic() < deadline, url
                time.sleep(0.05)


def _delete(http: httpx.Client, node_id: str) -> bool:
    return http.delete(f"/mesh/v1/nodes/{node_id}").status_code in (200, 404)


@contextlib.contextmanager
def fleet(mesh: Mesh, folder: Path) -> Iterator[Fleet]:
    """Gives a fleet, and ends it."""
    made = Fleet(mesh, folder)
    try:
        yield made
    finally:
        made.close()
