"""The headers of a call: what HTTP/2 and gRPC ask of them, and what a handler sees of them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from services.kit.grpc_server import wire

Metadata = tuple[tuple[str, str | bytes], ...]

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_CONTENT_TYPE = re.compile(rb"application/grpc(?:[+;].*)?", re.DOTALL)

_SPECIAL = {
    *(b":path", b":method", b":scheme", b":authority"),
    *(b"content-type", b"grpc-timeout", b"grpc-encoding", b"te"),
}
# Headers about the connection mean another protocol (RFC 9113, 8.2.2).
_FORBIDDEN = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
# The characters that stand in no name, and in no value (RFC 9113, 8.2.1).
_NOT_IN_NAMES = re.compile(rb"[\x00-\x20A-Z\x7f-\xff:]")
_NOT_IN_VALUES = re.compile(r"[\0\r\n]")

_MAX_NAMES = 1024
_MAX_NAME_BYTES = 64


class MalformedError(Exception):
    """The headers are none that HTTP/2 allows; the stream is reset."""


class Request(NamedTuple):
    """What the headers say.

    Attributes:
        path: `/service/method`.
        metadata: What is not HTTP/2's or gRPC's own.
        encoding: How compressed messages are compressed.
        timeout_s: How long the caller waits for the end; None for ever.
        fault: Why the call cannot be served; empty where it can.
        is_grpc: Whether it is a call at all, by its method and content type.
    """

    path: bytes
    metadata: Metadata
    encoding: str
    timeout_s: float | None
    fault: str
    is_grpc: bool


class RequestReader:
    """Reads the headers of calls; remembers which names it has found to be good."""

    def __init__(self) -> None:
        self._names: dict[bytes, tuple[str, bool]] = {}

    def read(self, headers: Sequence[tuple[bytes, bytes, bool]]) -> Request:
        """Returns what the headers say.

        Raises:
            MalformedError: HTTP/2 does not allow them.
        """
        special: dict[bytes, bytes] = {}
        metadata: list[tuple[str, str | bytes]] = []
        fault = ""
        names = self._names
        for name, value, _ in headers:
            if name in _SPECIAL:
                if name in special or (metadata and name[:1] == b":"):
                    raise MalformedError
                special[name] = value
                continue
            key, is_text = names.get(name) or self._name(name)
            if is_text:
                try:
                    text = value.decode()
                except UnicodeDecodeError:
                    text = value.decode("latin-1")
                if not text.isprintable() and _NOT_IN_VALUES.search(text):
                    raise MalformedError
                metadata.append((key, text))
            elif key:
                try:
                    metadata.extend((key, wire.binary_value(each)) for each in value.split(b","))
                except ValueError:
                    fault = f"The metadata {key} is not base64."
        path = special.get(b":path")
        if not path:
            raise MalformedError
        timeout_s: float | None = None
        timeout = special.get(b"grpc-timeout")
        if timeout is not None:
            parts = _TIMEOUT.fullmatch(timeout)
            if parts is None:
                fault = "The timeout cannot be read."
            else:
                timeout_s = int(parts[1]) * _SECONDS[parts[2]]
        content_type = special.get(b"content-type", b"")
        is_grpc = special.get(b":method") == b"POST" and (
            content_type == b"application/grpc" or _CONTENT_TYPE.fullmatch(content_type) is not None
        )
        encoding = special.get(b"grpc-encoding", b"").decode("latin-1")
        return Request(path, tuple(metadata), encoding, timeout_s, fault, is_grpc)

    def _name(self, name: bytes) -> tuple[str, bool]:
        """Returns the name and whether its values are text; no name where nobody sees it."""
        if not name or name in _FORBIDDEN or _NOT_IN_NAMES.search(name):
            raise MalformedError
        key = name.decode("ascii")
        found = ("", False) if key.startswith("grpc-") else (key, not key.endswith("-bin"))
        if len(self._names) < _MAX_NAMES and len(name) <= _MAX_NAME_BYTES:
            self._names[name] = found
        return found
