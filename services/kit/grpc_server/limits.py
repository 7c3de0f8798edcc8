"""What peers may take of the process: so many connections, calls and bytes, and no more."""

import asyncio
import os
import resource
from dataclasses import dataclass, field
from typing import Any

import grpc

_MIB = 1024 * 1024


class RefusedError(Exception):
    """A request that is not served; the call ends with this status.

    Args:
        code: The status.
        details: Its message.
    """

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


def _held_bytes() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(1024 * _MIB, memory // 8)


def _connections() -> int:
    # Half of the files that the process may open; the other half is for what it calls itself.
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if soft == resource.RLIM_INFINITY else min(4096, max(16, soft // 2))


@dataclass(frozen=True)
class Limits:
    """The most that peers may take.

    Attributes:
        streams: Calls at a time on one connection, with those that were cancelled and whose
            handlers still clean up.
        calls: Calls at a time on all connections.
        crowd: With more calls than this on all connections, each may have headers of at most
            `crowd_header_bytes`.
        crowd_header_bytes: See `crowd`.
        connections: Connections at a time, at most half of them from one address.
        held_bytes: Parts of requests, and requests larger than a frame for as long as their calls
            last, on all connections; one connection holds at most half of it.
        unread_bytes: What may wait to be sent because the peer does not read.
        turn_frames: Frames of one connection that are handled before others get their turn.
        check_s: Seconds between looks at all connections for those that make no progress.
        greeting_checks: Looks after which a connection must have greeted, or be closed.
        stuck_checks: Looks after which a peer must have read or sent something it owes.
    """

    streams: int = 1024
    calls: int = 8192
    crowd: int = 256
    crowd_header_bytes: int = 16 * 1024
    connections: int = field(default_factory=_connections)
    held_bytes: int = field(default_factory=_held_bytes)
    unread_bytes: int = 4 * _MIB
    turn_frames: int = 128
    check_s: float = 5.0
    greeting_checks: int = 2
    stuck_checks: int = 12


class Shared:
    """What all connections of a server have together.

    Args:
        limits: The most that they may have.
        max_message_bytes: The largest message that a call takes.

    Attributes:
        calls: Calls that run.
        held: Bytes of requests that are held.
        leaving: Handlers that were cancelled and still clean up.
        broken: How many peers broke the protocol since this was last said in the log.
        last_break: What the last of them did.
        turned_away: How many peers had a certificate that is not let in, since this was last said.
        last_turned_away: Who the last of them was.
    """

    def __init__(self, limits: Limits, max_message_bytes: int) -> None:
        self.limits = limits
        self.max_message_bytes = max_message_bytes
        self.calls = 0
        self.held = 0
        self.leaving: set[asyncio.Task[Any]] = set()
        self.broken = 0
        self.last_break = ""
        self.turned_away = 0
        self.last_turned_away = ""
