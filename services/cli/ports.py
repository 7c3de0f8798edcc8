"""Finds out before anything starts whether the parts' ports are free."""

import socket
from collections.abc import Sequence

from services.cli.part import Part


def conflicts(parts: Sequence[Part], front_host: str = "127.0.0.1") -> list[str]:
    """Returns one sentence for each port that something else listens on.

    Args:
        front_host: The address of the front door; where it is not loopback, any address counts.
    """
    host = "127.0.0.1" if front_host == "127.0.0.1" else "0.0.0.0"
    return [
        f"port {port} ({_for(part.name, purpose)}) is in use{_holder(port)}"
        for part in parts
        for purpose, port in part.ports.items()
        if not is_port_free(host, port)
    ]


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


def is_port_free(host: str, port: int) -> bool:
    """Says whether a TCP port can be listened on now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
