"""Envoy's admin socket, for whoever may open it."""

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from e2e.mesh import Mesh

_HEALTHY = "::health_flags::healthy"


def ask(mesh: "Mesh", path: str, method: str = "GET") -> str:
    """Returns the body of Envoy's answer."""
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(mesh.state_dir / "run" / "envoy-admin.sock"))
        connection.sendall(head.encode())
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    start, _, body = received.partition(b"\r\n\r\n")
    assert b" 200 " in start.partition(b"\r\n")[0], start
    return body.decode()


def healthy(mesh: "Mesh", cluster: str = "inference") -> set[str]:
    """Returns the addresses that Envoy sends calls to."""
    start = f"{cluster}::"
    return {
        line.removeprefix(start).removesuffix(_HEALTHY)
        for line in ask(mesh, "/clusters").splitlines()
        if line.startswith(start) and line.endswith(_HEALTHY)
    }


def counter(mesh: "Mesh", name: str) -> int:
    """Returns a counter's or gauge's value."""
    for line in ask(mesh, f"/stats?filter=^{name}$").splitlines():
        said, _, value = line.partition(": ")
        if said == name:
            return int(value)
    raise LookupError(name)
