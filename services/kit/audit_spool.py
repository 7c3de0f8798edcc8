"""Keeps audit events in a file until the chain has them, once and in order.

The chain knows the ids of its events, so that a batch that is sent again after a crash adds
nothing. What is written survives kill -9, not a loss of power (see services/kit/usage_log.py).
"""

import asyncio
import contextlib
import errno
import logging
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import grpc

from infermesh.auth.v1 import audit_service_pb2 as pb
from services.kit.errors import StoreUnavailableError
from services.kit.usage_log import MAX_PAYLOAD_BYTES, Kind, LogInUseError, Position, UsageLog

log = logging.getLogger(__name__)

Send = Callable[[Sequence[pb.AuditEvent]], Awaitable[object]]
"""Adds events to the chain; returns when that is committed."""

AWAY = (StoreUnavailableError, grpc.aio.AioRpcError, TimeoutError)
"""What `Send` raises where nobody takes events now."""

MAX_BATCH_EVENTS = 500
_MAX_BATCH_BYTES = 1024 * 1024
_BATCH_DELAY_S = 0.05
_FIRST_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 2.0
_LAST_TRY_S = 2.0
_MAX_REPLICAS = 64

# Administrative calls have room left when denials or inference have taken theirs.
_MAX_BACKLOG_BYTES = 64 * 1024 * 1024
_MAX_BACKLOG_BYTES_OF_ALL = 256 * 1024 * 1024

_POSITION = struct.Struct("<QQ")


def open_log(directory: Path) -> UsageLog:
    """Opens a folder that no other process on this machine uses: `0`, `1`, … in `directory`.

    Raises:
        LogInUseError: 64 processes use all of them.
        OSError: A folder cannot be made, read or written.
    """
    for number in range(_MAX_REPLICAS):
        with contextlib.suppress(LogInUseError):
            return UsageLog(directory / str(number))
    raise LogInUseError(f"{directory} is in use by {_MAX_REPLICAS} processes")


@contextlib.asynccontextmanager
async def open_spool(directory: Path, send: Send) -> AsyncIterator["AuditSpool"]:
    """Opens a spool, and sends for as long as the context lasts.

    On exit there is one last try of at most 2 s; what is not sent then waits for the next process.

    Raises:
        LogInUseError: See `open_log`.
        OSError: The folder cannot be made, read or written.
    """
    spool = AuditSpool(open_log(directory), send)
    sender = asyncio.create_task(spool.run(), name="audit spool")
    try:
        yield spool
    finally:
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        await spool.close()


class AuditSpool:
    """Keeps events until the chain has them."""

    def __init__(
        self,
        spool_log: UsageLog,
        send: Send,
        *,
        max_backlog_bytes: int = _MAX_BACKLOG_BYTES,
        max_backlog_bytes_of_all: int = _MAX_BACKLOG_BYTES_OF_ALL,
    ) -> None:
        self._log = spool_log
        self._send = send
        self._limits = (max_backlog_bytes, max_backlog_bytes_of_all)
        self._acked = spool_log.start
        self._backlog_bytes = 0
        self._is_failing = False
        self._waiting = asyncio.Event()
        self._recover()

    def append(self, payload: bytes, must: bool) -> None:
        """Keeps an event. When this returns the event survives the process.

        Args:
            payload: The serialized `AuditEvent`.
            must: Whether it may use the room that is left for administrative calls.

        Raises:
            OSError: It cannot be written, or too much waits already.
        """
        if self._backlog_bytes + len(payload) > self._limits[must]:
            raise OSError(errno.EDQUOT, "too many audit events wait to be sent")
        self._log.append(Kind.FINISHED, payload)
        self._backlog_bytes += len(payload)
        if self._log.is_segment_full:
            self._log.rotate(())
        self._waiting.set()

    def has_room(self) -> bool:
        """Says whether an event that must not be missing can be taken."""
        return self._backlog_bytes + MAX_PAYLOAD_BYTES <= self._limits[True]

    async def run(self) -> None:
        """Sends what waits, forever."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            await self._waiting.wait()
            await asyncio.sleep(_BATCH_DELAY_S)
            try:
                await self.send_waiting()
            except AWAY as error:
                if not self._is_failing:
                    log.warning("audit events wait in the spool", extra={"error": repr(error)})
            except Exception:
                # A full disk, most likely. Nothing is forgotten before it is acked.
                log.exception("the audit spool cannot send")
            else:
                if self._is_failing:
                    log.info("audit events are sent again")
                self._is_failing, backoff_s = False, _FIRST_BACKOFF_S
                continue
            self._is_failing = True
            self._waiting.set()
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    async def send_waiting(self) -> None:
        """Sends all that waits.

        Raises:
            StoreUnavailableError, AioRpcError, TimeoutError: Nobody takes it; what is not sent
                waits on.
        """
        while True:
            self._waiting.clear()
            payloads, position = self._read_batch()
            if not payloads:
                return
            await self._send([pb.AuditEvent.FromString(payload) for payload in payloads])
            self._log.append(Kind.ACKED, _POSITION.pack(*position))
            self._acked = position
            self._backlog_bytes -= sum(map(len, payloads))
            self._log.drop_before(position.segment)

    async def close(self) -> None:
        """Tries once more to send what waits, then lets go of the folder."""
        try:
            async with asyncio.timeout(_LAST_TRY_S):
                await self.send_waiting()
        except Exception as error:
            log.warning("audit events stay in the spool", extra={"error": repr(error)})
        finally:
            self._log.close()

    def _recover(self) -> None:
        for record in self._log.records(self._log.start):
            if record.kind == Kind.ACKED:
                self._acked = max(self._acked, Position(*_POSITION.unpack(record.payload)))
        for record in self._log.records(self._acked):
            if record.kind == Kind.FINISHED:
                self._backlog_bytes += len(record.payload)
        self._log.drop_before(self._acked.segment)
        if self._backlog_bytes:
            self._waiting.set()

    def _read_batch(self) -> tuple[list[bytes], Position]:
        payloads: list[bytes] = []
        size, position = 0, self._acked
        for record in self._log.records(position):
            position = record.end
            if record.kind == Kind.FINISHED:
                payloads.append(record.payload)
                size += len(record.payload)
                if len(payloads) >= MAX_BATCH_EVENTS or size >= _MAX_BATCH_BYTES:
                    break
        return payloads, position
