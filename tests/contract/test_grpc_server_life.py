"""How calls, connections and the server end, and how they keep out of each other's way."""

import asyncio
import errno
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from grpc_server_harness import Peer, Running, running
from services.kit.grpc_server import GrpcServer, Limits, wire

MIB = 1024 * 1024
LOCAL = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]


@pytest.fixture
def server() -> Iterator[Running]:
    with running() as found:
        yield found
        assert not found.faults


def _channel(server: Running) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(server.address, LOCAL)


# --- deadlines and cancellation ---


@pytest.mark.parametrize("method", ["Waits", "WaitsInStream"])
async def test_a_deadline_ends_the_handler(server: Running, method: str) -> None:
    with Peer(server.port) as peer:  # gRPC's clients keep time themselves; this one does not
        stream_id = peer.call(method, b"", (b"grpc-timeout", b"50m"))
        begun = time.monotonic()
        trailers, _ = peer.answer(stream_id)
        assert trailers["grpc-status"] == "4"
        assert 0.04 < time.monotonic() - begun < 10
    server.event("cancelled" if method == "Waits" else "stream closed")
    server.until(lambda: not server.shared().leaving)


async def test_a_deadline_that_is_over(server: Running) -> None:
    with Peer(server.port) as peer:
        for timeout in (b"0n", b"1n", b"0H"):
            stream_id = peer.call("Waits", b"", (b"grpc-timeout", timeout))
            assert peer.answer(stream_id)[0]["grpc-status"] == "4"
        assert peer.answer(peer.call("Echo", b"", (b"grpc-timeout", b"99999999H")))


def test_a_deadline_ends_an_answer_that_nobody_reads(server: Running) -> None:
    with Peer(server.port, settings=((wire.SETTINGS_INITIAL_WINDOW_SIZE, 0),)) as peer:
        for method in ("Plain", "Echo", "Counts"):
            stream_id = peer.call(method, b"1 100", (b"grpc-timeout", b"50m"))
            assert peer.answer(stream_id)[0]["grpc-status"] == "4"


def test_a_deadline_counts_from_the_headers(server: Running) -> None:
    with Peer(server.port) as peer:
        stream_id = peer.open("Waits", (b"grpc-timeout", b"4000m"))
        time.sleep(3)
        peer.data(stream_id, wire.framed(b""), wire.END_STREAM)
        begun = time.monotonic()
        assert peer.answer(stream_id)[0]["grpc-status"] == "4"
        assert time.monotonic() - begun < 3


async def test_cancelling_reaches_a_unary_handler(server: Running) -> None:
    async with _channel(server) as channel:
        call = channel.unary_unary("/t.S/Waits")(b"")
        waiting = asyncio.ensure_future(call)
        await asyncio.to_thread(server.event, "waits")
        call.cancel()
        assert await asyncio.to_thread(server.event, "cancelled") < 4
    assert server.service.events[-2:] == ["done True", "cancelled"]
    assert waiting.cancelled()


@pytest.mark.parametrize("request_", [b"", b"flood"], ids=["waiting", "writing"])
async def test_cancelling_reaches_a_stream(server: Running, request_: bytes) -> None:
    async with _channel(server) as channel:
        call = channel.unary_stream("/t.S/WaitsInStream")(request_)
        assert await call.read() == b"first"
        call.cancel()
        assert await asyncio.to_thread(server.event, "stream closed") < 4
    server.until(lambda: not server.shared().leaving and not server.shared().calls)


def test_a_generator_that_somebody_keeps_is_closed_all_the_same(server: Running) -> None:
    kept = []

    def keeps(request: bytes, context: object) -> AsyncIterator[bytes]:
        kept.append(server.service.waits_in_stream(request, context))
        return kept[0]

    handler = grpc.unary_stream_rpc_method_handler(keeps)
    server.server.add_registered_method_handlers("t.S", {"Keeps": handler})
    with Peer(server.port) as peer:
        stream_id = peer.call("Keeps", b"flood")
        peer.wait(wire.DATA, stream_id)
        server.until(lambda: server.connections()[0]._waiting)
        peer.send(wire.reset_frame(stream_id, wire.CANCEL))
        assert server.event("stream closed") < 4


async def test_a_connection_that_breaks_ends_its_calls(server: Running) -> None:
    with Peer(server.port) as peer:
        peer.wait(wire.DATA, peer.call("WaitsInStream", b""))
        peer.call("Waits", b"")
        server.event("waits")
    server.event("cancelled")
    server.event("stream closed")
    server.until(lambda: not server.connections() and not server.shared().calls)
    assert server.is_well()


async def test_a_call_that_is_cancelled_at_once_leaves_nothing(
    server: Running, recwarn: pytest.WarningsRecorder
) -> None:
    with Peer(server.port) as peer:
        block = peer.headers("Waits")
        frames = b"".join(
            wire.headers_frame(stream_id, block if stream_id == 1 else peer.headers("Waits"))
            + wire.frame(wire.DATA, wire.END_STREAM, stream_id, wire.framed(b""))
            + wire.reset_frame(stream_id, wire.CANCEL)
            for stream_id in range(1, 3001, 2)
        )
        peer.send(frames)
        peer.send(wire.frame(wire.PING, 0, 0, b"all done"))
        while True:
            found = peer.frame()
            assert found is not None
            if found[3] == b"all done":
                break
            assert found[0] != wire.GOAWAY
    server.until(lambda: not server.shared().leaving and not server.shared().calls)
    assert server.is_well()
    assert not [w for w in recwarn if "never awaited" in str(w.message)]


# --- stopping ---


async def test_running_calls_finish_in_the_grace(server: Running) -> None:
    async with _channel(server) as channel:
        calls = [channel.unary_unary("/t.S/Waits")(b"0.3") for _ in range(5)]
        waiting = [asyncio.ensure_future(call) for call in calls]
        await asyncio.to_thread(server.until, lambda: server.service.events.count("waits") == 5)
        begun = time.monotonic()
        await asyncio.to_thread(server.stop, 10)
        assert time.monotonic() - begun < 8
        assert await asyncio.gather(*waiting) == [b"0.3"] * 5
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.S/Echo")(b"", timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("grace", [None, 0, 0.1])
async def test_calls_that_do_not_finish_are_unavailable(
    server: Running, grace: float | None
) -> None:
    async with _channel(server) as channel:
        stream = channel.unary_stream("/t.S/WaitsInStream")(b"")
        assert await stream.read() == b"first"
        unary = asyncio.ensure_future(_code(channel.unary_unary("/t.S/Waits")(b"")))
        await asyncio.to_thread(server.event, "waits")
        begun = time.monotonic()
        await asyncio.to_thread(server.stop, grace)
        assert time.monotonic() - begun < 10
        assert await unary is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    # Handlers have cleaned up by the time `stop` is over.
    assert {"cancelled", "stream closed"} <= set(server.service.events)


async def _code(call: grpc.aio.Call) -> grpc.StatusCode:
    return await call.code()


def test_handlers_have_cleaned_up_when_the_server_has_stopped(server: Running) -> None:
    async def cleans_up(_: bytes, __: object) -> bytes:
        server.service.events.append("begun")
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.2)
            server.service.events.append("clean")
        return b""

    handler = grpc.unary_unary_rpc_method_handler(cleans_up)
    server.server.add_registered_method_handlers("t.S", {"CleansUp": handler})
    with Peer(server.port) as peer:
        peer.call("CleansUp", b"")
        server.event("begun")
        server.stop(0)
        assert server.service.events == ["begun", "clean"]


def test_calls_on_their_way_when_the_server_stops_are_served(server: Running) -> None:
    with Peer(server.port) as peer:
        first = peer.call("Echo", b"1")
        assert peer.answer(first)[1] == b"1"
        stopping = server.spawn(server.server.stop(5))
        goaway = peer.wait(wire.GOAWAY)
        assert int.from_bytes(goaway[:4], "big") == wire.MAX_WINDOW
        # It was sent before the client knew.
        second = peer.call("Echo", b"2")
        assert peer.answer(second)[1] == b"2"
        third = peer.call("Waits", b"0.2")
        peer.send(wire.frame(wire.PING, wire.ACK, 0, b"goodbye."))
        last = peer.wait(wire.GOAWAY)
        assert int.from_bytes(last[:4], "big") == third
        fourth = peer.call("Echo", b"4")
        assert peer.reset(fourth) == wire.REFUSED_STREAM
        assert peer.answer(third)[1] == b"0.2"
        assert peer.frame() is None
        stopping.result(5)


def test_a_peer_that_does_not_answer_the_last_ping(server: Running) -> None:
    with Peer(server.port) as peer:
        assert peer.answer(peer.call("Echo", b""))
        begun = time.monotonic()
        server.stop(10)
        assert time.monotonic() - begun < 8
        assert peer.goaway() == wire.NO_ERROR


def test_a_peer_that_does_not_read_does_not_keep_the_server_from_stopping(
    server: Running,
) -> None:
    with Peer(server.port, settings=((wire.SETTINGS_INITIAL_WINDOW_SIZE, 2**30),)) as peer:
        peer.send(wire.window_frame(0, 2**30))
        peer.call("Counts", b"5000 10000")
        server.until(lambda: any(c.is_paused for c in server.connections()))
        begun = time.monotonic()
        server.stop(0.2)
        assert time.monotonic() - begun < 15
        assert not server.connections()


# --- side by side ---


async def test_a_thousand_calls_at_a_time(server: Running) -> None:
    async with _channel(server) as channel:
        call = channel.unary_unary("/t.S/Waits")
        begun = time.monotonic()
        answers = await asyncio.gather(*(call(b"0.5") for _ in range(1_000)))
        assert answers == [b"0.5"] * 1_000
        assert server.service.events.count("waits") == 1_000
        assert time.monotonic() - begun < 60


async def test_calls_over_the_limit_of_a_connection_wait_or_are_refused() -> None:
    with running(limits=Limits(streams=5)) as server:
        async with _channel(server) as channel:  # it waits, for it knows the limit
            call = channel.unary_unary("/t.S/Waits")
            assert await asyncio.gather(*(call(b"0.02") for _ in range(20))) == [b"0.02"] * 20
        with Peer(server.port) as peer:
            first = [peer.call("Waits", b"1.5") for _ in range(5)]
            assert peer.reset(peer.call("Waits", b"1.5")) == wire.REFUSED_STREAM
            for stream_id in first:
                assert peer.answer(stream_id)[0]["grpc-status"] == "0"
                break
            assert server.is_well()


async def test_who_reads_slowly_holds_up_nobody(server: Running) -> None:
    async with _channel(server) as channel:
        slow = channel.unary_stream("/t.S/Counts")(b"8000 10000")
        assert (await slow.read()).startswith(b"0 ")
        before = _memory()
        for _ in range(100):
            begun = time.monotonic()
            assert await channel.unary_unary("/t.S/Echo")(b"quick") == b"quick"
            assert time.monotonic() - begun < 20
        assert _memory() - before < 50 * MIB
        got = 1
        while (message := await slow.read()) is not grpc.aio.EOF:
            assert message.startswith(b"%d " % got)
            got += 1
        assert got == 8000


def test_a_flood_of_answers_waits_for_the_window(server: Running) -> None:
    with Peer(server.port) as peer:
        slow = peer.call("WaitsInStream", b"flood")
        quick = peer.call("Echo", b"quick")
        sent = 0
        while (found := peer.frame(0.5 if sent < 60_000 else 0.05)) is not None:
            sent += len(found[3]) if found[0] == wire.DATA and found[2] == slow else 0
            if sent >= wire.DEFAULT_WINDOW - 20:
                break
        assert sent <= wire.DEFAULT_WINDOW
        # The connection's window is full too; a little more for the other call only.
        peer.send(wire.window_frame(0, 1000))
        peer.send(wire.window_frame(slow, 0x7000_0000))
        with pytest.raises(TimeoutError):
            more = 0
            while (found := peer.frame(0.2)) is not None:
                assert found[2] in (slow, quick, 0)
                more += len(found[3]) if found[0] == wire.DATA else 0
        assert more <= 1020
        peer.send(wire.reset_frame(slow, wire.CANCEL))
    server.event("stream closed")


def test_a_window_that_shrinks_and_grows(server: Running) -> None:
    with Peer(server.port, settings=((wire.SETTINGS_INITIAL_WINDOW_SIZE, 10),)) as peer:
        stream_id = peer.call("Echo", b"0123456789")
        assert peer.wait(wire.DATA, stream_id) == wire.framed(b"0123456789")[:10]
        # It is at 0; now at -5, then at 0 again, then there is room.
        peer.send(wire.settings_frame(((wire.SETTINGS_INITIAL_WINDOW_SIZE, 5),)))
        peer.send(wire.window_frame(stream_id, 5))
        peer.send(wire.frame(wire.PING, 0, 0, b"so far  "))
        assert peer.wait(wire.PING) == b"so far  "
        peer.send(wire.settings_frame(((wire.SETTINGS_INITIAL_WINDOW_SIZE, 100),)))
        assert peer.wait(wire.DATA, stream_id) == b"56789"
        peer.wait(wire.HEADERS, stream_id, wire.END_STREAM)


def test_an_empty_message_waits_for_the_window(server: Running) -> None:
    with Peer(server.port, settings=((wire.SETTINGS_INITIAL_WINDOW_SIZE, 0),)) as peer:
        stream_id = peer.call("Plain", b"")
        peer.send(wire.frame(wire.PING, 0, 0, b"so far  "))
        assert peer.wait(wire.PING) == b"so far  "
        peer.send(wire.window_frame(stream_id, 5))
        assert peer.wait(wire.DATA, stream_id) == wire.framed(b"")


# --- where it listens ---


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    for _ in range(2):  # the second time it is there already
        left = socket.socket(socket.AF_UNIX)
        if not path.exists():
            left.bind(str(path))
        left.close()
        with running(address=f"unix:{path}") as server:
            async with grpc.aio.insecure_channel(f"unix:{path}", LOCAL) as channel:
                assert await channel.unary_unary("/t.S/Echo")(b"x") == b"x"
                who = await channel.unary_unary("/t.S/Describes")(b"")
                assert b"('peer', 'unix:" in who
            assert server.port == 0
        assert not path.exists()


@pytest.mark.parametrize("address", ["[::1]:0", "[::]:0"])
async def test_ipv6(address: str) -> None:
    if not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    with running(address=address) as server:
        async with grpc.aio.insecure_channel(f"[::1]:{server.port}", LOCAL) as channel:
            assert b"'ipv6:::1:" in await channel.unary_unary("/t.S/Describes")(b"")
        if address == "[::]:0":
            assert server.is_well()  # over IPv4


async def test_addresses_that_cannot_be_bound(server: Running) -> None:
    for address in (
        server.address,
        "192.0.2.1:0",
        "127.0.0.1:port",
        "127.0.0.1:99999",
        "unix:/x/y",
    ):
        with pytest.raises(RuntimeError):
            GrpcServer(max_message_bytes=2**20).add_insecure_port(address)


# --- gRPC's own services ---


async def test_health_and_reflection(server: Running) -> None:
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server.server)
    reflection.enable_server_reflection(("t.S", reflection.SERVICE_NAME), server.server)
    statuses = health_pb2.HealthCheckResponse
    async with _channel(server) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == statuses.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="none"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="t.S"))
        assert (await watch.read()).status == statuses.SERVICE_UNKNOWN
        await asyncio.to_thread(server.run, servicer.set("t.S", statuses.SERVING))
        assert (await watch.read()).status == statuses.SERVING
        watch.cancel()
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        names = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        listed = (await anext(aiter(names))).list_services_response.service
        assert {each.name for each in listed} == {"t.S", reflection.SERVICE_NAME}


def _memory() -> int:
    statm = Path("/proc/self/statm").read_text()
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        return probe.connect_ex(("::1", 9)) != errno.EADDRNOTAVAIL
