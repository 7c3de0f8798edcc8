"""The server: which handler a call gets, where calls come in, and how it stops."""

import asyncio
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import grpc

from services.kit.grpc_server import wire
from services.kit.grpc_server.call import Call
from services.kit.grpc_server.connection import Connection

_BACKLOG = 1024
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class _Details(NamedTuple):
    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...]


class GrpcServer(grpc.aio.Server):
    """Serves gRPC without TLS.

    A handler for one message and one answer may be a plain function: it is then called at once,
    with no task of its own, and must not wait for anything.

    Args:
        max_message_bytes: The largest message that it takes.
    """

    def __init__(self, *, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._generic: list[grpc.GenericRpcHandler] = []
        self._methods: dict[str, Any] = {}
        self._sockets: list[socket.socket] = []
        self._listeners: list[asyncio.AbstractServer] = []
        self._connections: set[Connection] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopped = asyncio.Event()

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]
    ) -> None:
        """Adds handlers that say for each call whether they take it."""
        self._generic.extend(generic_rpc_handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, Any]
    ) -> None:
        """Adds the handlers of a service, by the names of its methods."""
        for name, handler in method_handlers.items():
            self._methods[f"/{service_name}/{name}"] = handler

    def add_insecure_port(self, address: str) -> int:
        """Binds `host:port` or `unix:path`; calls are taken from `start` on.

        Returns:
            The port, which the system chooses for port 0; 0 for a path.

        Raises:
            RuntimeError: The address cannot be bound.
        """
        try:
            sock = _bound(address)
        except OSError as error:
            raise RuntimeError(f"{address}: {error}") from None
        self._sockets.append(sock)
        name = sock.getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Raises `NotImplementedError`: nothing here speaks TLS."""
        raise NotImplementedError

    async def start(self) -> None:
        """Takes calls from now on."""
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            make = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            self._listeners.append(await make(self._connection, sock=sock, backlog=_BACKLOG))

    async def stop(self, grace: float | None) -> None:
        """Takes no more calls, waits for those that run, and then ends them.

        Args:
            grace: How long to wait, in seconds; None for not at all.
        """
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            connection.stop()
        if grace:
            try:
                async with asyncio.timeout(grace):
                    await self._idle.wait()
            except TimeoutError:
                pass
        for connection in list(self._connections):
            for call in list(connection.calls.values()):
                call.stop()
            connection.close()
        # One turn, so that what was cancelled can clean up and what was sent goes out.
        await asyncio.sleep(0)
        for connection in list(self._connections):
            connection.abort()
        self._stopped.set()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Waits until it has stopped; returns whether the time was up first."""
        try:
            async with asyncio.timeout(timeout):
                await self._stopped.wait()
        except TimeoutError:
            return True
        return False

    def _connection(self) -> Connection:
        return Connection(
            self._dispatch, self._opened, self._closed, max_message_bytes=self._max_message_bytes
        )

    def _opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._idle.clear()

    def _closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._idle.set()

    def _dispatch(
        self, connection: Connection, stream_id: int, headers: Sequence[tuple[bytes, bytes, bool]]
    ) -> Call:
        path = content_type = encoding = timeout = ""
        fault = ""
        metadata: list[tuple[str, str | bytes]] = []
        for raw_name, raw_value, _ in headers:
            name = raw_name.decode("latin-1")
            value = raw_value.decode("latin-1")
            if name[:1] == ":":
                if name == ":path":
                    path = value
            elif name == "content-type":
                content_type = value
            elif name[:5] == "grpc-":
                if name == "grpc-timeout":
                    timeout = value
                elif name == "grpc-encoding":
                    encoding = value
            elif name[-4:] == "-bin":
                try:
                    metadata.extend((name, wire.binary_value(v)) for v in value.split(","))
                except ValueError:
                    fault = f"The metadata {name} is not base64."
            elif name != "te":
                metadata.append((name, value))
        pairs = tuple(metadata)
        timeout_s: float | None = None
        if timeout:
            parts = _TIMEOUT.fullmatch(timeout)
            if parts is None:
                fault = "The timeout cannot be read."
            else:
                timeout_s = int(parts[1]) * _SECONDS[parts[2]]
        call = Call(connection, stream_id, pairs, encoding, timeout_s)
        connection.calls[stream_id] = call
        handler = self._handler(path, pairs)
        if content_type[:16] != "application/grpc":
            call.refuse(grpc.StatusCode.INVALID_ARGUMENT, "The content type is not gRPC's.")
        elif fault:
            call.refuse(grpc.StatusCode.INTERNAL, fault)
        elif handler is None:
            call.refuse(grpc.StatusCode.UNIMPLEMENTED, "The method is not served here.")
        else:
            call.begin(handler)
        return call

    def _handler(self, path: str, metadata: tuple[tuple[str, str | bytes], ...]) -> Any:
        handler = self._methods.get(path)
        if handler is not None:
            return handler
        details: Any = _Details(path, metadata)
        for generic in self._generic:
            handler = generic.service(details)
            if handler is not None:
                return handler
        return None


def _bound(address: str) -> socket.socket:
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        target: Any = address[len("unix:") :]
        family = socket.AF_UNIX
    else:
        host, _, port = address.rpartition(":")
        found = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # IPv4 first, for `localhost` is both.
        family, _, _, _, target = min(found, key=lambda each: each[0] != socket.AF_INET)
        sock = socket.socket(family)
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind(target)
    except OSError:
        sock.close()
        raise
    return sock
