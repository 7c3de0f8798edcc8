"""Measures what a call costs the gRPC server of services/kit and grpc.aio's: `make bench-grpc`.

Both serve the same handlers in processes of their own, one after the other in every round, to the
same caller: HTTP/2 connections with a few calls in flight on each, headers like those that Envoy
sends. The figures are CPU time of the server process (user and system, as the kernel counts it)
for each call, as medians over the rounds; they say nothing about waiting.
"""

import argparse
import asyncio
import dataclasses
import os
import platform
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import psutil
import uvloop
from google.protobuf import wrappers_pb2
from jh2 import _hazmat
from rich.console import Console
from rich.table import Table

from services.kit.grpc_server import GrpcServer, wire

SERVICE = "bench.Echo"
MESSAGES = 64
TEXT = "x" * 200
KINDS = ("grpc.aio", "infermesh")
_MAX_MESSAGE_BYTES = 4 * 1024 * 1024
_HEAD = struct.Struct(">BHBBI")


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is called, and how often.

    Attributes:
        name: What the table says.
        method: The method of `bench.Echo`.
        calls: How many calls a round has.
        connections: How many connections there are.
        in_flight: How many calls are open at a time on each.
    """

    name: str
    method: str
    calls: int
    connections: int
    in_flight: int


WORKLOADS = (
    Workload("unary, 200 B, 1 at a time", "Unary", 4_000, 1, 1),
    Workload("unary, 200 B, 16 at a time", "Unary", 8_000, 4, 4),
    Workload(f"stream of {MESSAGES}, 200 B each, 16 at a time", "Stream", 400, 4, 4),
)


# --- the server's process ---


async def _unary(request: Any, _context: Any) -> Any:
    return request


async def _stream(request: Any, _context: Any) -> AsyncIterator[Any]:
    for _ in range(MESSAGES):
        yield request


async def _serve(kind: str) -> None:
    server: grpc.aio.Server = (
        grpc.aio.server()
        if kind == "grpc.aio"
        else GrpcServer(max_message_bytes=_MAX_MESSAGE_BYTES)
    )
    message = wrappers_pb2.StringValue
    forms = {
        "Unary": grpc.unary_unary_rpc_method_handler(
            _unary, message.FromString, message.SerializeToString
        ),
        "Stream": grpc.unary_stream_rpc_method_handler(
            _stream, message.FromString, message.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, forms),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


# --- the caller's process ---


class Caller(asyncio.Protocol):
    """Keeps some calls open on one connection until enough of them are answered.

    Args:
        method: What is called.
        calls: How many calls there are.
        in_flight: How many are open at a time.
    """

    def __init__(self, method: str, calls: int, in_flight: int) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._path = f"/{SERVICE}/{method}".encode()
        self._left_to_start, self._left = calls, calls
        self._in_flight = in_flight
        self._stream_id = 1
        self._received = 0
        self._rest = b""
        self._encoder = _hazmat.Encoder()
        self._body = wrappers_pb2.StringValue(value=TEXT).SerializeToString()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._transport.write(
            wire.PREFACE
            + wire.settings_frame(((wire.SETTINGS_INITIAL_WINDOW_SIZE, 2**24),))
            + wire.window_frame(0, 2**30)
        )
        self._transport.write(b"".join(self._call() for _ in range(self._in_flight)))

    def _call(self) -> bytes:
        if not self._left_to_start:
            return b""
        self._left_to_start -= 1
        stream_id = self._stream_id
        self._stream_id += 2
        headers = [
            (b":method", b"POST", False),
            (b":scheme", b"http", False),
            (b":path", self._path, False),
            (b":authority", b"bench", False),
            (b"te", b"trailers", False),
            (b"content-type", b"application/grpc", False),
            (b"x-request-id", b"5f0c1f7e-0000-4000-8000-%012d" % stream_id, False),
            (b"x-mesh-key-id", b"key_0123456789abcdef", False),
            (b"x-mesh-tenant", b"tenant-0", False),
            (b"x-mesh-role", b"user", False),
            (b"x-mesh-model", b"smollm2-135m", False),
            (b"x-envoy-expected-rq-timeout-ms", b"600000", False),
            (b"grpc-timeout", b"600000m", False),
        ]
        return wire.headers_frame(stream_id, self._encoder.encode(headers)) + wire.frame(
            wire.DATA, wire.END_STREAM, stream_id, wire.framed(self._body)
        )

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        position, out = 0, []
        while len(data) - position >= wire.FRAME_HEAD_BYTES:
            high, low, kind, flags, _ = _HEAD.unpack_from(data, position)
            stop = position + wire.FRAME_HEAD_BYTES + (high << 16 | low)
            if stop > len(data):
                break
            self._received += stop - position
            if kind == wire.HEADERS and flags & wire.END_STREAM:
                self._left -= 1
                out.append(self._call())
            elif kind == wire.PING and not flags & wire.ACK:
                out.append(wire.frame(wire.PING, wire.ACK, 0, data[stop - 8 : stop]))
            elif kind in (wire.RST_STREAM, wire.GOAWAY):
                self.done.set_exception(RuntimeError(f"the server sent frame {kind}"))
            position = stop
        self._rest = data[position:]
        if self._received > 2**28:
            out.append(wire.window_frame(0, self._received))
            self._received = 0
        self._transport.write(b"".join(out))
        if not self._left and not self.done.done():
            self.done.set_result(None)
            self._transport.close()


async def _load(port: int, workload: Workload) -> None:
    loop = asyncio.get_running_loop()
    callers = []
    for _ in range(workload.connections):
        calls = workload.calls // workload.connections
        _, caller = await loop.create_connection(
            lambda calls=calls: Caller(workload.method, calls, workload.in_flight),
            "127.0.0.1",
            port,
        )
        callers.append(caller)
    await asyncio.gather(*(caller.done for caller in callers))


# --- rounds ---


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(kind: str) -> dict[str, tuple[float, float]]:
    """Returns CPU microseconds and calls a second for each workload, on a fresh server."""
    found = {}
    command = [sys.executable, __file__, "--serve", kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            process = psutil.Process(server.pid)
            for workload in WORKLOADS:
                warm = dataclasses.replace(workload, calls=workload.calls // 10)
                uvloop.run(_load(port, warm))
                before, begun = _cpu_s(process), time.perf_counter()
                uvloop.run(_load(port, workload))
                wall = time.perf_counter() - begun
                used = _cpu_s(process) - before
                found[workload.name] = used / workload.calls * 1e6, workload.calls / wall
        finally:
            server.kill()
    return found


def main() -> None:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(_serve(options.serve))
        return
    rounds = [{kind: measure(kind) for kind in options.kinds} for _ in range(options.rounds)]
    table = Table(title=f"CPU of the server, µs a call; medians of {options.rounds} rounds")
    table.add_column("workload")
    for kind in options.kinds:
        table.add_column(kind, justify="right")
        table.add_column("calls/s", justify="right")
    for workload in WORKLOADS:
        row = [workload.name]
        for kind in options.kinds:
            costs, rates = zip(*(each[kind][workload.name] for each in rounds), strict=True)
            row += [
                f"{statistics.median(costs):.0f} ({min(costs):.0f}-{max(costs):.0f})",
                f"{statistics.median(rates):,.0f}",
            ]
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"grpcio {grpc.__version__}"
    )


if __name__ == "__main__":
    main()
