"""Brings usage events to the ledger at least once; the ledger makes that exactly once.

    begin(event)  ── BEGUN ──┐
    finish(event) ─ FINISHED ┼─► segment files ──► batches ──► send ──► ACKED
                             └─ at open: begun and never finished becomes OUTCOME_LOST

Events are read back from the files when they are sent, so that a backlog of any length takes no
memory. They are sent in the order in which they finished, so one position says what is still to
be sent.
"""

import asyncio
import contextlib
import logging
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

import grpc

from infermesh.metrics.v1 import usage_service_pb2
from services.kit.rejected import set_aside
from services.kit.usage_log import Kind, Position, UsageLog

log = logging.getLogger(__name__)

Send = Callable[[usage_service_pb2.RecordUsageRequest], Awaitable[object]]
"""Brings a batch to the ledger; returns when it is committed."""

MAX_BATCH_EVENTS = 500
_MAX_BATCH_BYTES = 1024 * 1024
_BATCH_DELAY_S = 0.2
_SEND_TIMEOUT_S = 10.0
_FIRST_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 2.0
_LAST_TRY_S = 2.0

_POSITION = struct.Struct("<QQ")
_Key = tuple[str, int]
# Field 1 of `RecordUsageRequest`, in protobuf's wire format: number << 3 | 2 for what has a length.
_EVENTS_TAG = b"\x0a"


class Spool(Protocol):
    """Keeps events until the ledger has them."""

    def begin(self, event: usage_service_pb2.UsageEvent) -> None:
        """Notes that a request is in this process."""

    def finish(self, event: usage_service_pb2.UsageEvent) -> None:
        """Records how a request ended."""


@contextlib.asynccontextmanager
async def open_spool(directory: Path, send: Send) -> AsyncIterator["UsageSpool"]:
    """Opens the spool in a directory of its own and sends for as long as the context lasts.

    What an earlier process left behind is sent too. On exit there is one last try of at most 2 s;
    what is not sent by then waits in the directory for the next process.

    Args:
        directory: Made with mode 0700 when missing. One process at a time uses it.
        send: Brings a batch to the ledger; it is repeated until it returns.

    Raises:
        LogInUseError: Another process uses the directory.
        OSError: The directory cannot be made, read or written.
    """
    spool = UsageSpool(directory, send)
    sender = asyncio.create_task(spool.run(), name="usage spool")
    try:
        yield spool
    finally:
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        await spool.close()


class UsageSpool:
    """Keeps usage events until the ledger has them. Made by `open_spool`."""

    def __init__(self, directory: Path, send: Send, *, segment_bytes: int = 4 * 1024 * 1024):
        self._directory = directory
        self._send = send
        self._log = UsageLog(directory, segment_bytes=segment_bytes)
        self._begun: dict[_Key, bytes] = {}
        self._acked = self._log.start
        self._unsent = 0
        self._waiting = asyncio.Event()
        self._full_batch = asyncio.Event()
        self._is_failing = False
        self._is_closing = False
        self._recover()
        # What was left is sent, and segments of which nothing is left to send are dropped, at once.
        self._waiting.set()
        self._full_batch.set()

    def begin(self, event: usage_service_pb2.UsageEvent) -> None:
        """Notes that a request is in this process; its outcome and numbers may be unset.

        Raises:
            OSError: The note could not be written.
            ValueError: The event is longer than 64 KiB.
        """
        payload = event.SerializeToString()
        self._log.append(Kind.BEGUN, payload)
        self._begun[(event.request_id, event.attempt)] = payload
        if self._log.is_segment_full:
            self._log.rotate(self._begun.values())

    def finish(self, event: usage_service_pb2.UsageEvent) -> None:
        """Records how a request ended. When this returns the event survives the process.

        Raises:
            OSError: The event could not be written.
            ValueError: The event is longer than 64 KiB.
        """
        self._log.append(Kind.FINISHED, event.SerializeToString())
        self._begun.pop((event.request_id, event.attempt), None)
        if self._log.is_segment_full:
            self._log.rotate(self._begun.values())
        self._unsent += 1
        if self._unsent == 1:
            self._waiting.set()
        elif self._unsent == MAX_BATCH_EVENTS:
            self._full_batch.set()

    async def run(self) -> None:
        """Sends what waits, forever."""
        while True:
            await self._waiting.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BATCH_DELAY_S):
                    await self._full_batch.wait()
            try:
                await self._send_waiting()
            except Exception:
                # A full disk, most likely. Nothing is forgotten before it is acked.
                log.exception("the usage spool cannot send")
                self._waiting.set()
                await asyncio.sleep(_MAX_BACKOFF_S)

    async def close(self) -> None:
        """Tries once more to send what waits, then lets go of the directory."""
        self._is_closing = True
        try:
            async with asyncio.timeout(_LAST_TRY_S):
                await self._send_waiting()
        except Exception as error:
            log.warning("usage stays in the spool", extra={"error": repr(error)})
        finally:
            self._log.close()

    def _recover(self) -> None:
        for record in self._log.records(self._log.start):
            if record.kind == Kind.BEGUN:
                self._begun[_key(record.payload)] = record.payload
            elif record.kind == Kind.FINISHED:
                self._begun.pop(_key(record.payload), None)
            elif record.kind == Kind.ACKED:
                self._acked = max(self._acked, Position(*_POSITION.unpack(record.payload)))
        if self._begun:
            log.warning("requests were lost", extra={"count": len(self._begun)})
        for payload in list(self._begun.values()):
            event = usage_service_pb2.UsageEvent.FromString(payload)
            event.outcome = usage_service_pb2.OUTCOME_LOST
            for field in (
                "prompt_tokens",
                "completion_tokens",
                "cached_tokens",
                "time_to_first_token",
                "duration",
            ):
                event.ClearField(field)
            self.finish(event)

    async def _send_waiting(self) -> None:
        is_complete = False
        while not is_complete:
            self._waiting.clear()
            self._full_batch.clear()
            self._unsent = 0
            payloads, position, is_complete = self._read_batch()
            if payloads:
                await self._deliver(payloads)
                self._log.append(Kind.ACKED, _POSITION.pack(*position))
            self._acked = position
            self._log.drop_before(position.segment)

    def _read_batch(self) -> tuple[list[bytes], Position, bool]:
        """Returns events that are not acked, where they end, and whether these were all."""
        payloads: list[bytes] = []
        size = 0
        position = self._acked
        for record in self._log.records(position):
            position = record.end
            if record.kind != Kind.FINISHED:
                continue
            payloads.append(record.payload)
            size += len(record.payload)
            if len(payloads) >= MAX_BATCH_EVENTS or size >= _MAX_BATCH_BYTES:
                return payloads, position, False
        return payloads, self._log.end, True

    async def _deliver(self, payloads: list[bytes]) -> None:
        """Sends until it succeeds; sets aside what the ledger refuses as invalid."""
        request = _request_of(payloads)
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                async with asyncio.timeout(_SEND_TIMEOUT_S):
                    await self._send(request)
                break
            except Exception as error:
                if (
                    isinstance(error, grpc.aio.AioRpcError)
                    and error.code() is grpc.StatusCode.INVALID_ARGUMENT
                ):
                    await self._deliver_apart(payloads, error)
                    return
                if self._is_closing:
                    raise
                if not self._is_failing:
                    log.warning("usage cannot be sent, it waits", extra={"error": repr(error)})
                self._is_failing = True
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)
        if self._is_failing:
            log.info("usage is sent again")
        self._is_failing = False

    async def _deliver_apart(self, payloads: list[bytes], error: grpc.aio.AioRpcError) -> None:
        if len(payloads) > 1:
            half = len(payloads) // 2
            await self._deliver(payloads[:half])
            await self._deliver(payloads[half:])
            return
        event = usage_service_pb2.UsageEvent.FromString(payloads[0])
        log.error(
            "the ledger refuses a usage event; it is set aside",
            extra={"event_request_id": event.request_id, "error": error.details()},
        )
        set_aside(self._directory, str(event))


def _request_of(payloads: list[bytes]) -> usage_service_pb2.RecordUsageRequest:
    """Returns the request with these events: their bytes, each after its field's tag and length.

    To parse and copy the events one by one takes three times as long.
    """
    out: list[bytes] = []
    for payload in payloads:
        out += (_EVENTS_TAG, _varint(len(payload)), payload)
    return usage_service_pb2.RecordUsageRequest.FromString(b"".join(out))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _key(payload: bytes) -> _Key:
    event = usage_service_pb2.UsageEvent.FromString(payload)
    return event.request_id, event.attempt
