"""Append-only segment files that keep records across the death of the process.

A record is one `os.write` of a header and a payload:

    u32 payload length │ u32 crc32 of kind and payload │ u8 kind │ payload        (little-endian)

What was written survives kill -9, because the kernel has it; it does not survive a loss of power,
because nothing is synced: a sync costs more than the request that it would account for. A tail
that is torn all the same is found by its checksum and cut off when the log is opened.
"""

import enum
import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

log = logging.getLogger(__name__)

SEGMENT_BYTES = 4 * 1024 * 1024
MAX_PAYLOAD_BYTES = 64 * 1024

_HEADER = struct.Struct("<IIB")
_SUFFIX = ".seg"


class Kind(enum.IntEnum):
    """What a record says."""

    BEGUN = 1
    FINISHED = 2
    ACKED = 3


class Position(NamedTuple):
    """A place in the log, between two records."""

    segment: int
    offset: int


class Record(NamedTuple):
    """A record as it was read, and where it ends."""

    kind: int
    payload: bytes
    end: Position


class LogInUseError(RuntimeError):
    """Another process, or another log of this one, uses the directory."""


class UsageLog:
    """The segments of one directory, oldest first. New records go to a segment of its own.

    Raises:
        LogInUseError: The directory is in use.
        OSError: The directory cannot be made, read or written.
    """

    def __init__(self, directory: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        self._lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise LogInUseError(f"{directory} is in use by another process") from None
        self._segments = sorted(int(path.stem) for path in directory.glob("*" + _SUFFIX))
        for segment in self._segments:
            self._cut_torn_tail(segment)
        self._file = -1
        self._size = 0
        self._carried_bytes = 0
        self.rotate(())

    @property
    def start(self) -> Position:
        """Where the oldest record that is left begins."""
        return Position(self._segments[0], 0)

    @property
    def end(self) -> Position:
        """Where the next record goes."""
        return Position(self._segments[-1], self._size)

    @property
    def is_segment_full(self) -> bool:
        """Whether it is time to `rotate`."""
        return self._size - self._carried_bytes >= self._segment_bytes

    def append(self, kind: Kind, payload: bytes) -> None:
        """Writes a record at the end.

        Raises:
            OSError: The record could not be written in full; the log is as it was before.
            ValueError: The payload is too long.
        """
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"a usage record takes {MAX_PAYLOAD_BYTES} bytes at most")
        self._write(_HEADER.pack(len(payload), zlib.crc32(payload, kind), kind) + payload)

    def rotate(self, begun: Iterable[bytes]) -> None:
        """Goes on in a new segment that starts with `begun`, the records of what still runs.

        So an old segment is needed for the finished records in it only, however long a request
        runs.
        """
        carried = b"".join(
            _HEADER.pack(len(payload), zlib.crc32(payload, Kind.BEGUN), Kind.BEGUN) + payload
            for payload in begun
        )
        segment = self._segments[-1] + 1 if self._segments else 1
        path = self._path(segment)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        file, old = os.open(path, flags, 0o600), self._file
        try:
            _write_all(file, carried)
        except OSError:
            os.close(file)
            path.unlink()
            raise
        self._file, self._size, self._carried_bytes = file, len(carried), len(carried)
        self._segments.append(segment)
        if old >= 0:
            os.close(old)

    def records(self, position: Position) -> Iterator[Record]:
        """Reads from a position to where the log ends at the time of the call."""
        segments = [segment for segment in self._segments if segment >= position.segment]
        current, size = self._segments[-1], self._size
        for segment in segments:
            offset = position.offset if segment == position.segment else 0
            with self._path(segment).open("rb") as file:
                yield from _read(file, segment, offset, size if segment == current else None)

    def drop_before(self, segment: int) -> None:
        """Deletes the segments before `segment`; the one that is written to stays."""
        while self._segments[0] < min(segment, self._segments[-1]):
            self._path(self._segments[0]).unlink(missing_ok=True)
            del self._segments[0]

    def close(self) -> None:
        """Lets go of the directory."""
        os.close(self._file)
        os.close(self._lock)

    def _write(self, record: bytes) -> None:
        try:
            written = os.write(self._file, record)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        if written != len(record):
            os.ftruncate(self._file, self._size)
            raise OSError(f"the disk of {self._directory} is full")
        self._size += written

    def _cut_torn_tail(self, segment: int) -> None:
        path = self._path(segment)
        end = 0
        with path.open("rb") as file:
            for record in _read(file, segment, 0, None):
                end = record.end.offset
        torn = path.stat().st_size - end
        if torn:
            log.warning("cut a torn tail off", extra={"segment": str(path), "bytes": torn})
            os.truncate(path, end)

    def _path(self, segment: int) -> Path:
        return self._directory / f"{segment:016d}{_SUFFIX}"


def _read(file: BinaryIO, segment: int, offset: int, limit: int | None) -> Iterator[Record]:
    """Reads records until the limit, the end of the file or the first that is not whole."""
    file.seek(offset)
    while limit is None or offset < limit:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return
        length, checksum, kind = _HEADER.unpack(header)
        if length > MAX_PAYLOAD_BYTES:
            return
        payload = file.read(length)
        if len(payload) < length or zlib.crc32(payload, kind) != checksum:
            return
        offset += _HEADER.size + length
        yield Record(kind, payload, Position(segment, offset))


def _write_all(file: int, data: bytes) -> None:
    if data and os.write(file, data) != len(data):
        raise OSError("the disk is full")
