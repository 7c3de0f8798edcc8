"""A gRPC server on a loop and thread of its own, as in a service, and a peer of bare frames."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Self

import grpc
import uvloop
from jh2 import _hazmat

from services.kit.grpc_server import GrpcServer, Limits, wire
from services.kit.grpc_server.header_blocks import HeaderDecoder

MAX_MESSAGE_BYTES = 24 * 1024 * 1024


class Service:
    """Handlers of every kind; what happens to them is noted in `events`."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.running = 0
        self.most_running = 0

    def handlers(self) -> dict[str, Any]:
        return {
            "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "Plain": grpc.unary_unary_rpc_method_handler(lambda request, _: request),
            "PlainFails": grpc.unary_unary_rpc_method_handler(lambda request, _: 1 / 0),
            "Fails": grpc.unary_unary_rpc_method_handler(self.fails),
            "Aborts": grpc.unary_unary_rpc_method_handler(self.aborts),
            "AbortsBadly": grpc.unary_unary_rpc_method_handler(self.aborts_badly),
            "Codes": grpc.unary_unary_rpc_method_handler(self.codes),
            "Describes": grpc.unary_unary_rpc_method_handler(self.describes),
            "Waits": grpc.unary_unary_rpc_method_handler(self.waits),
            "Panics": grpc.unary_unary_rpc_method_handler(self.panics),
            "Counts": grpc.unary_stream_rpc_method_handler(self.counts),
            "WaitsInStream": grpc.unary_stream_rpc_method_handler(self.waits_in_stream),
            "Writes": grpc.unary_stream_rpc_method_handler(self.writes),
            "FailsLate": grpc.unary_stream_rpc_method_handler(self.fails_late),
            "Joins": grpc.stream_unary_rpc_method_handler(self.joins),
            "Refuses": grpc.stream_unary_rpc_method_handler(self.refuses),
            "Reads": grpc.stream_stream_rpc_method_handler(self.reads),
            "Chats": grpc.stream_stream_rpc_method_handler(self.chats),
            "Hoards": grpc.stream_stream_rpc_method_handler(self.hoards),
        }

    async def echo(self, request: bytes, _: Any) -> bytes:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        return request

    async def fails(self, request: bytes, _: Any) -> bytes:
        raise LookupError(request)

    async def aborts(self, request: bytes, context: Any) -> bytes:
        trailers = (("x-text", "plain"), ("x-utf", "zwölf"), ("x-raw-bin", bytes(range(256))))
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, request.decode(), trailers)
        return request

    async def aborts_badly(self, request: bytes, context: Any) -> bytes:
        trailers: Any = {b"name": (("Bad Name", "x"),), b"value": (("x-mesh-error", "a\r\nb: c"),)}
        trailers |= {b"type": (("x-raw-bin", "text"),), b"number": (("x-n", 7),)}
        details = {b"details": "half a pair: \ud800"}.get(request, "It does not fit.")
        await context.abort(grpc.StatusCode.NOT_FOUND, details, trailers.get(request, ()))
        return request

    async def codes(self, request: bytes, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.ALREADY_EXISTS)
        context.set_details("It is there.")
        return request

    async def describes(self, _: bytes, context: Any) -> bytes:
        await context.send_initial_metadata((("x-start", "1"), ("x-start-bin", b"\0\xff")))
        context.set_trailing_metadata((("x-end", "2"), ("x-end-bin", b"\xfe")))
        left = context.time_remaining()
        pairs = [*context.invocation_metadata(), ("peer", context.peer()), ("left", repr(left))]
        return repr(pairs).encode()

    async def waits(self, request: bytes, context: Any) -> bytes:
        context.add_done_callback(lambda call: self.events.append(f"done {call.cancelled()}"))
        self.events.append("waits")
        try:
            await asyncio.sleep(float(request or b"30"))
        except asyncio.CancelledError:
            self.events.append("cancelled")
            raise
        return request

    async def panics(self, _: bytes, __: Any) -> bytes:
        class PanicException(BaseException):
            pass

        raise PanicException

    async def counts(self, request: bytes, _: Any) -> AsyncIterator[bytes]:
        count, size = map(int, request.split())
        for number in range(count):
            yield (b"%d " % number).ljust(size, b"x")

    async def waits_in_stream(self, request: bytes, _: Any) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            if request == b"flood":
                while True:
                    yield bytes(1000)
            await asyncio.sleep(30)
        finally:
            self.events.append("stream closed")

    async def writes(self, request: bytes, context: Any) -> None:
        for number in range(int(request)):
            await context.write(b"%d" % number)

    async def fails_late(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield request
        await context.abort(grpc.StatusCode.DATA_LOSS, "It broke off.")

    async def joins(self, requests: AsyncIterator[bytes], _: Any) -> bytes:
        count = size = 0
        async for request in requests:
            count, size = count + 1, size + len(request)
        self.events.append("joined")
        return b"%d %d" % (count, size)

    async def refuses(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        async for _ in requests:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "The first is enough.")
        return b""

    async def reads(self, _: AsyncIterator[bytes], context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)

    async def chats(self, requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    async def hoards(self, _: AsyncIterator[bytes], __: Any) -> AsyncIterator[bytes]:
        yield b"I do not read."
        await asyncio.sleep(30)


class Running:
    """A server that runs in a thread.

    Args:
        address: Where it listens.
        limits: What peers may take.
        max_message_bytes: The largest message.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:0",
        limits: Limits | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self.service = Service()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.faults: list[dict[str, Any]] = []
        self._loop.call_soon_threadsafe(
            self._loop.set_exception_handler, lambda _, fault: self.faults.append(fault)
        )
        self.server: GrpcServer = self.run(self._start(address, limits, max_message_bytes))

    async def _start(self, address: str, limits: Limits | None, size: int) -> GrpcServer:
        server = GrpcServer(max_message_bytes=size, limits=limits)
        generic = grpc.method_handlers_generic_handler("t.S", self.service.handlers())
        server.add_generic_rpc_handlers((generic,))
        self.port = server.add_insecure_port(address)
        await server.start()
        return server

    def run(self, work: Coroutine[Any, Any, Any], timeout_s: float = 20) -> Any:
        """Runs something on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Starts something on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self, grace: float | None = None) -> None:
        self.run(self.server.stop(grace))

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def shared(self) -> Any:
        """What all connections hold."""
        return self.server._shared

    def connections(self) -> list[Any]:
        return list(self.server._connections)

    def event(self, name: str, timeout_s: float = 15.0) -> float:
        """Waits until a handler has noted something; returns how many seconds that took."""
        begun = time.monotonic()
        self.until(lambda: name in self.service.events, timeout_s)
        return time.monotonic() - begun

    def until(self, holds: Any, timeout_s: float = 15.0) -> None:
        """Waits until something holds; fails where it does not."""
        end = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.002)

    def is_well(self) -> bool:
        """Says whether a well-behaved caller is served on a connection of its own."""
        with Peer(self.port) as peer:
            stream_id = peer.call("Echo", b"still there")
            return peer.answer(stream_id) == ({"grpc-status": "0"}, b"still there")


@contextmanager
def running(**options: Any) -> Iterator[Running]:
    """A server for as long as the context lasts."""
    server = Running(**options)
    try:
        yield server
    finally:
        server.close()


class Peer:
    """A client that sends whatever frames a test wants.

    Args:
        port: Where the server is on loopback.
        greet: Whether to begin as HTTP/2 has it.
        settings: What to say in the greeting.
    """

    def __init__(self, port: int, *, greet: bool = True, settings: Any = ()) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 10)
        self._rest = b""
        self._encoder = _hazmat.Encoder()
        self._decoder = HeaderDecoder(2**20)
        self._next_id = 1
        if greet:
            self.send(wire.PREFACE + wire.settings_frame(settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def headers(self, method: str, *extra: tuple[bytes, bytes], **changed: bytes) -> bytes:
        """Returns the header block of a call; `path=b""` and the like change what stands in it."""
        named = {"method": b"POST", "scheme": b"http", "path": b"/t.S/" + method.encode()}
        named |= {"authority": b"test"} | changed
        pairs = [(b":" + name.encode(), value) for name, value in named.items() if value]
        pairs += [(b"te", b"trailers"), (b"content-type", b"application/grpc"), *extra]
        return self._encoder.encode([(name, value, False) for name, value in pairs])

    def open(self, method: str, *extra: tuple[bytes, bytes], flags: int = 0) -> int:
        """Sends a call's headers; returns its stream."""
        stream_id = self._next_id
        self._next_id += 2
        self.send(wire.headers_frame(stream_id, self.headers(method, *extra), flags))
        return stream_id

    def call(self, method: str, message: bytes, *extra: tuple[bytes, bytes]) -> int:
        """Sends a whole call with one message; returns its stream."""
        stream_id = self.open(method, *extra)
        self.data(stream_id, wire.framed(message), wire.END_STREAM)
        return stream_id

    def data(self, stream_id: int, data: bytes, flags: int = 0) -> None:
        """Sends DATA in frames that are not too large."""
        rest = data
        while True:
            piece, rest = rest[:16384], rest[16384:]
            self.send(wire.frame(wire.DATA, 0 if rest else flags, stream_id, piece))
            if not rest:
                return

    def frame(self, timeout_s: float = 15.0) -> tuple[int, int, int, bytes] | None:
        """Returns kind, flags, stream and payload of the next frame; None at the end."""
        self.sock.settimeout(timeout_s)
        while True:
            if len(self._rest) >= 9:
                size = int.from_bytes(self._rest[:3], "big")
                if len(self._rest) >= 9 + size:
                    head, payload = self._rest[:9], self._rest[9 : 9 + size]
                    self._rest = self._rest[9 + size :]
                    return head[3], head[4], int.from_bytes(head[5:9], "big"), payload
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._rest += data

    def wait(self, kind: int, stream_id: int | None = None, flags: int = 0) -> bytes:
        """Returns the payload of the next frame of a kind; passes over others."""
        while (found := self.frame()) is not None:
            if found[0] == kind and stream_id in (None, found[2]) and found[1] & flags == flags:
                return found[3]
            if found[0] == wire.HEADERS:
                self._decoder.decode(found[3])
        raise AssertionError("the connection ended first")

    def answer(self, stream_id: int) -> tuple[dict[str, str], bytes]:
        """Returns the trailers and the first message of a call's answer."""
        body = b""
        while (found := self.frame()) is not None:
            kind, flags, where, payload = found
            headers = self._decoder.decode(payload) if kind == wire.HEADERS else ()
            if where != stream_id:
                continue
            if kind == wire.DATA:
                body += payload
            elif kind == wire.RST_STREAM:
                raise AssertionError(f"reset with {int.from_bytes(payload, 'big')}")
            if headers and flags & wire.END_STREAM:
                named = {name.decode(): value.decode() for name, value, _ in headers}
                return {k: v for k, v in named.items() if k.startswith("grpc-s")}, body[5:]
        raise AssertionError("the connection ended first")

    def goaway(self) -> int:
        """Returns the code with which the server ends the connection, once it is closed."""
        code = None
        while (found := self.frame()) is not None:
            if found[0] == wire.GOAWAY:
                code = int.from_bytes(found[3][4:8], "big")
        assert code is not None, "closed without a word"
        return code

    def reset(self, stream_id: int) -> int:
        """Returns the code with which the server resets a stream."""
        return int.from_bytes(self.wait(wire.RST_STREAM, stream_id), "big")
