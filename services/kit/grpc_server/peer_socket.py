"""The socket under a connection: who is at its other end, and whether they still are."""

import asyncio
import socket
from typing import Any

_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
_USER_TIMEOUT_MS = 60_000


def keep_alive(sock: Any) -> None:
    """Has the system notice a peer that is gone without a word, after about a minute."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (*_KEEPALIVE, ("TCP_USER_TIMEOUT", _USER_TIMEOUT_MS)):
        if (option := getattr(socket, name, None)) is not None:  # not every system has all
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def peer_name(transport: asyncio.BaseTransport) -> str:
    """Returns the address at the other end, as gRPC writes it."""
    name = transport.get_extra_info("peername")
    if isinstance(name, tuple):
        kind = "ipv6" if ":" in str(name[0]) else "ipv4"
        return f"{kind}:{name[0]}:{name[1]}"
    return f"unix:{name or ''}"
