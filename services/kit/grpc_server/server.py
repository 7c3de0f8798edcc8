"""The server: which handler a call gets, where calls come in, and how it stops."""

import asyncio
import contextlib
import functools
import inspect
import logging
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from services.kit.grpc_server.answer import Method
from services.kit.grpc_server.call import Call
from services.kit.grpc_server.connection import Connection
from services.kit.grpc_server.header_blocks import KnownHeaders
from services.kit.grpc_server.limits import Limits, Shared
from services.kit.grpc_server.request import Metadata, RequestReader
from services.kit.grpc_server.tls_listener import BACKLOG, TlsConnection, TlsListener
from services.kit.grpc_server.wire import MAX_FRAME_BYTES
from services.kit.tls import ServerTls

log = logging.getLogger(__name__)

# How long handlers that were cancelled may clean up, and what was sent last may take to go out.
_LAST_S = 1.0
_MAX_MADE = 1024


class _Details(NamedTuple):
    method: str
    invocation_metadata: Metadata


class GrpcServer(grpc.aio.Server):
    """Serves gRPC, plainly or with TLS.

    A handler for one message and one answer may be a plain function: it is then called at once,
    with no task of its own, and must not wait for anything.

    Args:
        max_message_bytes: The largest message that it takes, at least a frame's size.
        limits: What peers may take otherwise.

    Raises:
        ValueError: `max_message_bytes` is too small.
    """

    def __init__(self, *, max_message_bytes: int, limits: Limits | None = None) -> None:
        if max_message_bytes < MAX_FRAME_BYTES:
            raise ValueError(f"max_message_bytes is less than {MAX_FRAME_BYTES}")
        self._shared = Shared(limits or Limits(), max_message_bytes)
        self._requests = RequestReader()
        self._generic: list[grpc.GenericRpcHandler] = []
        self._methods: dict[bytes, Method] = {}
        self._made: dict[int, tuple[Any, Method]] = {}
        self._sockets: list[socket.socket] = []
        self._tls: list[TlsListener] = []
        self._listeners: list[asyncio.AbstractServer | TlsListener] = []
        self._connections: set[Connection] = set()
        self._hosts: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self._checks: asyncio.TimerHandle | None = None
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
            self._methods[f"/{service_name}/{name}".encode()] = _method(handler)

    def add_insecure_port(self, address: str, *, is_shared: bool = False) -> int:
        """Binds `host:port` or `unix:path`; calls are taken from `start` on.

        Args:
            address: The address.
            is_shared: Whether other processes bind the port too; each gets some connections.

        Returns:
            The port, which the system chooses for port 0; 0 for a path.

        Raises:
            RuntimeError: The address cannot be bound.
        """
        try:
            sock = _bound(address, is_shared=is_shared)
        except (OSError, ValueError) as error:
            raise RuntimeError(f"{address}: {error}") from None
        self._sockets.append(sock)
        name = sock.getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    def add_tls_port(self, address: str, tls: ServerTls, *, is_shared: bool = False) -> int:
        """Binds `host:port` for peers with a certificate; calls are taken from `start` on.

        Args:
            address: The address.
            tls: The server's certificate, and whom it admits.
            is_shared: As `add_insecure_port` has it.

        Returns:
            The port, which the system chooses for port 0.

        Raises:
            RuntimeError: The address cannot be bound.
        """
        port = self.add_insecure_port(address, is_shared=is_shared)
        make = functools.partial(
            TlsConnection,
            self._dispatch,
            self._opened,
            self._closed,
            self._shared,
            allowed=tls.allowed,
        )
        self._tls.append(TlsListener(self._sockets.pop(), tls.folder, make))
        return port

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Raises `UsageError`: TLS comes by `add_tls_port`, which renews certificates."""
        raise grpc.aio.UsageError("TLS comes by add_tls_port.")

    async def start(self) -> None:
        """Takes calls from now on.

        Raises:
            OSError: The TLS files cannot be read.
        """
        loop = asyncio.get_running_loop()
        for listener in self._tls:
            await listener.start()
            self._listeners.append(listener)
        for sock in self._sockets:
            make = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            self._listeners.append(await make(self._connection, sock=sock, backlog=BACKLOG))
        self._checks = loop.call_later(self._shared.limits.check_s, self._check)

    async def stop(self, grace: float | None) -> None:
        """Takes no more calls, waits for those that run, and then ends them.

        Args:
            grace: How long to wait, in seconds; None for not at all.
        """
        self._close_sockets()
        if grace:
            for connection in list(self._connections):
                connection.stop()
            await self._until_idle(grace)
        for connection in list(self._connections):
            connection.finish()
        await self._until_idle(_LAST_S)
        for connection in list(self._connections):
            connection.abort()
        if leaving := self._shared.leaving - {asyncio.current_task()}:
            await asyncio.wait(leaving, timeout=_LAST_S)
        if self._checks is not None:
            self._checks.cancel()
        self._stopped.set()

    def _close_sockets(self) -> None:
        paths = [sock.getsockname() for sock in self._sockets if sock.family == socket.AF_UNIX]
        for listener in self._listeners:
            listener.close()
        if not self._listeners:  # it never started
            for sock in self._sockets:
                sock.close()
            for tls in self._tls:
                tls.close()
        for path in paths:
            Path(path).unlink(missing_ok=True)
        self._sockets.clear()
        self._tls.clear()
        self._listeners.clear()

    async def _until_idle(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Waits until it has stopped; returns whether the time was up first."""
        try:
            async with asyncio.timeout(timeout):
                await self._stopped.wait()
        except TimeoutError:
            return True
        return False

    def _connection(self) -> Connection:
        return Connection(self._dispatch, self._opened, self._closed, self._shared)

    def _opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._idle.clear()
        host = _host(connection)
        self._hosts[host] += 1
        limit = self._shared.limits.connections
        if len(self._connections) > limit or self._hosts[host] > max(1, limit // 2):
            connection.abort()

    def _closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        host = _host(connection)
        self._hosts[host] -= 1
        if not self._hosts[host]:
            del self._hosts[host]
        if not self._connections:
            self._idle.set()

    def _check(self) -> None:
        shared = self._shared
        self._checks = asyncio.get_running_loop().call_later(shared.limits.check_s, self._check)
        for connection in list(self._connections):
            connection.check()
        if shared.broken:
            log.info(
                "peers broke the protocol",
                extra={"connections": shared.broken, "error": shared.last_break},
            )
            shared.broken = 0
        if shared.turned_away:
            log.warning(
                "peers were turned away",
                extra={"audit": True, "peers": shared.turned_away, "last": shared.last_turned_away},
            )
            shared.turned_away = 0

    def _dispatch(
        self, connection: Connection, stream_id: int, headers: Sequence[tuple[bytes, bytes, bool]]
    ) -> Call:
        if isinstance(headers, KnownHeaders):
            request = headers.request
            if request is None:
                request = headers.request = self._requests.read(headers)
        else:
            request = self._requests.read(headers)
        call = Call(connection, stream_id, request)
        connection.calls[stream_id] = call
        self._shared.calls += 1
        if not request.is_grpc:
            call.refuse(grpc.StatusCode.INVALID_ARGUMENT, "The request is no gRPC call.")
        elif request.fault:
            call.refuse(grpc.StatusCode.INTERNAL, request.fault)
        elif method := self._methods.get(request.path) or self._found(request):
            call.begin(method)
        else:
            call.refuse(grpc.StatusCode.UNIMPLEMENTED, "The method is not served here.")
        return call

    def _found(self, request: Any) -> Method | None:
        details: Any = _Details(request.path.decode("latin-1"), request.metadata)
        for generic in self._generic:
            handler = generic.service(details)
            if handler is not None:
                method = self._made_of(handler)
                # What a service's table holds does not change; other handlers may look at more.
                if isinstance(generic, grpc.ServiceRpcHandler):
                    self._methods[request.path] = method
                return method
        return None

    def _made_of(self, handler: Any) -> Method:
        """Returns a handler as calls need it, which takes time to find out."""
        made = self._made.get(id(handler))
        if made is not None:
            return made[1]
        method = _method(handler)
        if len(self._made) < _MAX_MADE:  # what chooses by call may make a new one each time
            self._made[id(handler)] = handler, method
        return method


def _method(handler: Any) -> Method:
    act = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    streams = handler.request_streaming or handler.response_streaming
    is_async = inspect.iscoroutinefunction(act) or inspect.iscoroutinefunction(
        getattr(act, "__call__", None)  # noqa: B004 - an object with an asynchronous `__call__`
    )
    return Method(
        act,
        not streams and not is_async,
        handler.request_streaming,
        handler.response_streaming,
        handler.request_deserializer,
        handler.response_serializer,
    )


def _host(connection: Connection) -> str:
    return connection.peer.rpartition(":")[0]


def _bound(address: str, *, is_shared: bool) -> socket.socket:
    if address.startswith("unix:"):
        target: Any = address[len("unix:") :]
        family = socket.AF_UNIX
        if Path(target).is_socket():  # left there by a process that was killed
            Path(target).unlink()
    else:
        host, _, text = address.rpartition(":")
        port = int(text)
        if not 0 <= port <= 65_535:  # the resolver would take the rest of it
            raise ValueError("there is no such port")
        found = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # IPv4 first, for `localhost` is both.
        family, _, _, _, target = min(found, key=lambda each: each[0] != socket.AF_INET)
    sock = socket.socket(family)
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setblocking(False)
        sock.bind(target)
    except OSError:
        sock.close()
        raise
    return sock
