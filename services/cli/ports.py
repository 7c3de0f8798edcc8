"""Finds out before anything starts whether the parts can have their ports."""

import errno
import socket
from collections.abc import Sequence

from services.cli.part import Part

LOOPBACK = "127.0.0.1"


def conflicts(
    parts: Sequence[Part], front_host: str = LOOPBACK, front_port: int | None = None
) -> list[str]:
    """Returns one sentence for each port that cannot be had.

    Args:
        front_host: The address of the front door; the other ports are on loopback.
        front_port: The port of the front door.
    """
    found = []
    owners: dict[int, str] = {}
    for part in parts:
        for purpose, port in part.ports.items():
            owner = _for(part.name, purpose)
            if other := owners.get(port):
                found.append(f"port {port} is wanted twice, for {other} and for {owner}")
                continue
            owners[port] = owner
            if reason := _refusal(front_host if port == front_port else LOOPBACK, port):
                found.append(f"port {port} ({owner}) {reason}")
    return found


def is_port_free(host: str, port: int) -> bool:
    """Says whether a TCP port can be listened on now."""
    return not _refusal(host, port)


def _refusal(host: str, port: int) -> str:
    """Returns why the port cannot be listened on; empty when it can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"is in use{_holder(port)}"
            if error.errno == errno.EADDRNOTAVAIL:
                return f"cannot be had at {host}, which is no address of this machine"
            return f"cannot be had at {host}: {error.strerror}"
    return ""


def _for(part: str, purpose: str) -> str:
    return part if part == purpose else f"{part}, {purpose}"


def _holder(port: int) -> str:
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN
            if listens and connection.laddr and connection.laddr.port == port:
                if connection.pid is None:
                    break
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:  # other users' processes may be none of our business
        return ""
    return ""
