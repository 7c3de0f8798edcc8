"""A mesh over simulated engines, one of them in a network of its own, to break on purpose.

The engines are simulators (services/inference/simulator): they make load and faults, no language.
Everything else is real.
"""

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from services.cli import probes, stack
from services.cli.part import Part
from services.cli.supervisor import Supervisor

PORT, BASE_PORT = 26080, 26000
NODES = 4
ANSWER_TOKENS, DECODE_RATE = 50, 50
_SLOTS = 64
_NETWORK = "infermesh-chaos"
_HOST_SIDE, _NODE_SIDE = "10.87.13.1", "10.87.13.2"
_LINK, _FAR_LINK = "imchaos0", "imchaos1"


class Fleet:
    """A running mesh of four nodes.

    Args:
        folder: Holds its state.
        cut_off: The node that gets a network of its own; empty for none.
    """

    def __init__(self, folder: Path, cut_off: str = "") -> None:
        self.has_network = bool(cut_off)
        self._folder = folder
        self._cut_off = cut_off
        self._options = stack.Options(
            state_dir=folder / "state",
            models_dir=folder,
            host="0.0.0.0" if cut_off else "127.0.0.1",
            port=PORT,
            base_port=BASE_PORT,
            chat_nodes=NODES,
        )
        self._engines: dict[str, str] = {}
        self._supervisor = Supervisor(self._parts())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{PORT}"

    @property
    def key(self) -> str:
        return (self._options.state_dir / "admin.key").read_text().strip()

    @property
    def names(self) -> list[str]:
        return [f"node-{i + 1}" for i in range(NODES)]

    def pid(self, name: str) -> int:
        """Returns the process of a part that runs."""
        pid = self._supervisor.state(name).pid
        assert pid is not None
        return pid

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to a part and all that it started."""
        process = psutil.Process(self.pid(name))
        for each in (process, *process.children(recursive=True)):
            each.send_signal(number)

    def hold(self, name: str) -> None:
        """Kills a part and keeps it from coming back until `release`."""
        self._hold_file(name).touch()
        self.signal(name, signal.SIGKILL)

    def release(self, name: str) -> None:
        self._hold_file(name).unlink()

    def set_faults(self, node: str, **faults: object) -> None:
        """Sets what goes wrong in the engine of a node; nothing where nothing is named."""
        httpx.post(f"{self._engines[node]}/sim/faults", json=faults).raise_for_status()

    def set_link(self, is_up: bool) -> None:
        """Cuts the network of the node that has its own, or mends it."""
        state = "up" if is_up else "down"
        # On the node's side: on ours the route would go too, and packets to who knows where.
        command = [*_inside(True), "ip", "link", "set", _FAR_LINK, state]
        subprocess.run(command, check=True)

    def ready_nodes(self) -> set[str]:
        reply = httpx.get(
            f"{self.url}/mesh/v1/nodes",
            headers={"authorization": f"Bearer {self.key}"},
            timeout=30,
        )
        nodes = reply.raise_for_status().json()["nodes"]
        return {node["node_id"] for node in nodes if node["state"] == "NODE_STATE_READY"}

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._supervisor.start(), self._loop).result(100)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._supervisor.stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _hold_file(self, name: str) -> Path:
        return self._folder / f"{name}.hold"

    def _parts(self) -> list[Part]:
        parts = []
        for part in stack.build(self._options):
            if part.name in ("engine-embed", "node-embed", "embeddings"):
                continue
            if part.name.startswith("engine-"):
                part = self._engine(part)
            elif part.name.startswith("node-"):
                part = self._node(part)
            parts.append(self._holdable(part))
        return parts

    def _engine(self, part: Part) -> Part:
        node = part.name.replace("engine-", "node-")
        (port,) = part.ports.values()
        inside = node == self._cut_off
        host = _NODE_SIDE if inside else "127.0.0.1"
        self._engines[node] = f"http://{host}:{port}"
        argv = [sys.executable, "-m", "services.inference.simulator"]
        argv += ["--host", host, "--port", str(port), "--model", stack.CHAT_MODEL]
        argv += ["--answer-tokens", str(ANSWER_TOKENS), "--decode-rate", str(DECODE_RATE)]
        argv += ["--decode-slowdown", "0", "--slots", str(_SLOTS)]
        return dataclasses.replace(
            part,
            argv=[*_inside(inside), *argv],
            probe=probes.http(host, port, "/health"),
        )

    def _node(self, part: Part) -> Part:
        (port,) = part.ports.values()
        inside = part.name == self._cut_off
        env = {
            **part.env,
            "INFERMESH_ENGINE": "sim",
            "INFERMESH_ENGINE_URL": self._engines[part.name],
        }
        if not inside:
            return dataclasses.replace(part, env=env)
        env["INFERMESH_LISTEN"] = f"{_NODE_SIDE}:{port}"
        env["INFERMESH_MESH_ADDRESS"] = f"{_HOST_SIDE}:{PORT}"
        return dataclasses.replace(
            part,
            env=env,
            argv=[*_inside(inside), *part.argv],
            probe=probes.grpc_health(_NODE_SIDE, port),
        )

    def _holdable(self, part: Part) -> Part:
        wait = 'while test -e "$0"; do sleep 0.1; done; exec "$@"'
        argv = ["sh", "-c", wait, str(self._hold_file(part.name)), *part.argv]
        return dataclasses.replace(part, argv=argv)


def _inside(inside: bool) -> list[str]:
    return ["ip", "netns", "exec", _NETWORK] if inside else []


@contextlib.contextmanager
def network() -> Iterator[bool]:
    """Makes a network for one node; yields whether this machine lets us."""
    commands = (
        f"ip netns add {_NETWORK}",
        f"ip link add {_LINK} type veth peer name {_FAR_LINK}",
        f"ip link set {_FAR_LINK} netns {_NETWORK}",
        f"ip addr add {_HOST_SIDE}/30 dev {_LINK}",
        f"ip link set {_LINK} up",
        f"ip netns exec {_NETWORK} ip addr add {_NODE_SIDE}/30 dev {_FAR_LINK}",
        f"ip netns exec {_NETWORK} ip link set {_FAR_LINK} up",
        f"ip netns exec {_NETWORK} ip link set lo up",
    )
    try:
        allowed = os.geteuid() == 0
        for command in commands if allowed else ():
            done = subprocess.run(command.split(), capture_output=True)
            allowed = allowed and done.returncode == 0
        yield allowed
    finally:
        subprocess.run(["ip", "netns", "del", _NETWORK], capture_output=True)
        subprocess.run(["ip", "link", "del", _LINK], capture_output=True)
