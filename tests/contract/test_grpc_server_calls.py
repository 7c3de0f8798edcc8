"""Calls of every kind, by gRPC's own client: messages, metadata, status."""

import ast
import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from grpc_server_harness import MAX_MESSAGE_BYTES, Running, running

MIB = 1024 * 1024
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.absolute_max_metadata_size", 256 * 1024),
    ("grpc.max_metadata_size", 256 * 1024),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as found:
        yield found
        assert not found.faults


@pytest.fixture
async def channel(server: Running) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(server.address, OPTIONS) as found:
        yield found


async def _send(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        await asyncio.sleep(0)
        yield message


@pytest.mark.parametrize("method", ["Echo", "Plain"])
@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 65_535, 3 * MIB])
async def test_a_message_comes_back(channel: grpc.aio.Channel, method: str, size: int) -> None:
    message = (b"0123456789" * (size // 10 + 1))[:size]
    assert await channel.unary_unary(f"/t.S/{method}")(message) == message


async def test_twenty_megabytes_go_both_ways(channel: grpc.aio.Channel, server: Running) -> None:
    message = bytes(range(256)) * (20 * MIB // 256)
    assert await channel.unary_unary("/t.S/Echo")(message) == message
    call = channel.stream_stream("/t.S/Chats")(_send(message, b"", message))
    assert [each async for each in call] == [message, b"", message]
    server.until(lambda: server.shared().held == 0)


async def test_a_message_over_the_limit_is_refused(channel: grpc.aio.Channel) -> None:
    for call in (
        channel.unary_unary("/t.S/Echo")(bytes(MAX_MESSAGE_BYTES + 1)),
        channel.stream_unary("/t.S/Joins")(_send(b"first", bytes(MAX_MESSAGE_BYTES + 1))),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(MAX_MESSAGE_BYTES + 1) in (caught.value.details() or "")
    assert await channel.unary_unary("/t.S/Echo")(b"next") == b"next"


async def test_the_largest_message_is_taken(channel: grpc.aio.Channel) -> None:
    call = channel.stream_unary("/t.S/Joins")(_send(bytes(MAX_MESSAGE_BYTES), b""))
    assert await call == b"2 %d" % MAX_MESSAGE_BYTES


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 0), (200, 5), (50, 30_000)])
async def test_a_stream_comes(channel: grpc.aio.Channel, count: int, size: int) -> None:
    got = [each async for each in channel.unary_stream("/t.S/Counts")(b"%d %d" % (count, size))]
    assert got == [(b"%d " % number).ljust(size, b"x") for number in range(count)]


async def test_a_stream_is_written(channel: grpc.aio.Channel) -> None:
    got = [each async for each in channel.unary_stream("/t.S/Writes")(b"20")]
    assert got == [b"%d" % number for number in range(20)]


@pytest.mark.parametrize("count", [0, 1, 500])
async def test_a_stream_is_taken(channel: grpc.aio.Channel, count: int) -> None:
    call = channel.stream_unary("/t.S/Joins")(_send(*[b"abc"] * count))
    assert await call == b"%d %d" % (count, 3 * count)


@pytest.mark.parametrize("method", ["Chats", "Reads"])
async def test_both_stream_in_turn(channel: grpc.aio.Channel, method: str) -> None:
    call = channel.stream_stream(f"/t.S/{method}")()
    for number in range(50):
        await call.write(b"%d" % number)
        assert await call.read() == b"%d" % number
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_the_window_of_a_stream_opens_as_it_is_read(channel: grpc.aio.Channel) -> None:
    # More than any window: it comes to the end only where the server opens it again.
    call = channel.stream_unary("/t.S/Joins")(_send(*[bytes(4 * MIB)] * 20))
    assert await asyncio.wait_for(call, 30) == b"20 %d" % (80 * MIB)


async def test_metadata_goes_both_ways(channel: grpc.aio.Channel, server: Running) -> None:
    sent = (
        ("x-text", "plain text"),
        ("x-empty", ""),
        ("x-two", "1"),
        ("x-two", "2"),
        ("x-raw-bin", bytes(range(256))),
        ("x-empty-bin", b""),
    )
    call = channel.unary_unary("/t.S/Describes")(b"", metadata=sent, timeout=60)
    got = ast.literal_eval((await call).decode())
    named = dict(got)
    assert [pair for pair in got if pair[0].startswith("x-")] == list(sent)
    assert not [name for name, _ in got if name.startswith((":", "grpc-", "te", "content-"))]
    assert named["peer"].startswith("ipv4:127.0.0.1:")
    assert 55 < float(named["left"]) <= 61  # clients round up
    start = dict(await call.initial_metadata())
    end = dict(await call.trailing_metadata())
    assert (start["x-start"], start["x-start-bin"]) == ("1", b"\0\xff")
    assert (end["x-end"], end["x-end-bin"]) == ("2", b"\xfe")
    without = await channel.unary_unary("/t.S/Describes")(b"")
    assert dict(ast.literal_eval(without.decode()))["left"] == "None"


async def test_initial_metadata_comes_before_the_first_message(server: Running) -> None:
    async def begins(_: Any, context: Any) -> AsyncIterator[bytes]:
        await context.send_initial_metadata((("x-early", "yes"),))
        await asyncio.sleep(30)
        yield b""

    handler = grpc.unary_stream_rpc_method_handler(begins)
    server.server.add_registered_method_handlers("t.Late", {"Begins": handler})
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_stream("/t.Late/Begins")(b"")
        got = await asyncio.wait_for(call.initial_metadata(), 5)
        assert dict(got)["x-early"] == "yes"
        call.cancel()


@pytest.mark.parametrize(
    "details",
    ["", "plain", "100 % of ümläuts, 日本語, \n tabs\t and 😀", "a%20b", "x" * 5_000, "ü" * 20_000],
    ids=["none", "plain", "unicode", "percent", "long", "longer than a frame"],
)
async def test_a_handler_aborts(channel: grpc.aio.Channel, details: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/t.S/Aborts")(details.encode())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == details
    trailers = dict(caught.value.trailing_metadata())
    assert trailers["x-text"] == "plain"
    assert trailers["x-utf"] == "zwölf"
    assert trailers["x-raw-bin"] == bytes(range(256))


@pytest.mark.parametrize("what", ["name", "value", "type", "number"])
async def test_trailers_that_cannot_be_sent(channel: grpc.aio.Channel, what: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/t.S/AbortsBadly")(what.encode(), timeout=20)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "cannot be sent" in (caught.value.details() or "")


async def test_details_that_are_no_unicode(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/t.S/AbortsBadly")(b"details", timeout=20)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "half a pair: ?"


@pytest.mark.parametrize("method", ["Fails", "PlainFails", "Panics"])
async def test_a_handler_that_fails(
    channel: grpc.aio.Channel, server: Running, method: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(f"/t.S/{method}")(b"secret", timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert "secret" not in (caught.value.details() or "")


async def test_a_stream_that_breaks_off(channel: grpc.aio.Channel) -> None:
    call = channel.unary_stream("/t.S/FailsLate")(b"first")
    assert await call.read() == b"first"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS


async def test_a_status_that_is_set(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/t.S/Codes")(b"")
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert caught.value.details() == "It is there."


async def test_an_answer_before_the_request_ends(channel: grpc.aio.Channel) -> None:
    call = channel.stream_unary("/t.S/Refuses")()
    await call.write(bytes(10_000))
    assert await asyncio.wait_for(call.code(), 5) is grpc.StatusCode.PERMISSION_DENIED
    assert await call.details() == "The first is enough."


async def test_a_method_that_is_not_there(channel: grpc.aio.Channel) -> None:
    for path in ("/t.S/Nothing", "/t.None/Echo", "/"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(path)(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests(server: Running, compression: grpc.Compression) -> None:
    async with grpc.aio.insecure_channel(
        server.address, OPTIONS, compression=compression
    ) as channel:
        for message in (b"", b"abc" * 1_000, bytes(20 * MIB)):
            assert await channel.unary_unary("/t.S/Echo")(message) == message
        call = channel.stream_unary("/t.S/Joins")(_send(bytes(10_000), b"", bytes(500_000)))
        assert await call == b"3 510000"


async def test_a_bomb_is_refused(server: Running) -> None:
    async with grpc.aio.insecure_channel(
        server.address, OPTIONS, compression=grpc.Compression.Gzip
    ) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.S/Echo")(bytes(MAX_MESSAGE_BYTES + 1))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_handlers_with_messages_of_their_own(server: Running) -> None:
    handler = grpc.unary_unary_rpc_method_handler(
        _length, request_deserializer=_number, response_serializer=lambda n: b"%d" % n
    )
    server.server.add_registered_method_handlers("t.Typed", {"Length": handler})
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = channel.unary_unary("/t.Typed/Length")
        assert await call(b"41") == b"42"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"none")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def _number(data: bytes) -> int:
    return int(data)


async def _length(request: int, _: Any) -> int:
    return request + 1


class Later:
    """Plain handlers whose answer comes later; the request says how."""

    def __init__(self) -> None:
        self.open: list[asyncio.Future[bytes]] = []

    def answer(self, request: bytes, _: Any) -> "bytes | asyncio.Future[bytes]":
        if request == b"now":
            return b"now"
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        if request == b"fails":
            loop.call_later(0.01, future.set_exception, ValueError("secret"))
        elif request == b"is cancelled":
            loop.call_later(0.01, future.cancel)
        elif request == b"never":
            self.open.append(future)
        elif request == b"is done":
            future.set_result(request)
        else:
            loop.call_later(0.01, future.set_result, request)
        return future


@pytest.fixture
def later(server: Running) -> Later:
    found = Later()
    handler = grpc.unary_unary_rpc_method_handler(found.answer)
    server.server.add_registered_method_handlers("t.Later", {"Answer": handler})
    return found


@pytest.mark.parametrize("request_", [b"now", b"is done", b"later", b"", b"x" * 100_000])
async def test_a_plain_handler_answers_later(
    channel: grpc.aio.Channel, later: Later, request_: bytes
) -> None:
    call = channel.unary_unary("/t.Later/Answer")
    assert await asyncio.gather(*(call(request_, timeout=20) for _ in range(20))) == [request_] * 20


@pytest.mark.parametrize("how", [b"fails", b"is cancelled"])
async def test_a_plain_handler_fails_later(
    channel: grpc.aio.Channel, later: Later, how: bytes
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/t.Later/Answer")(how, timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert "secret" not in (caught.value.details() or "")


async def test_a_caller_leaves_before_a_plain_handler_has_answered(
    channel: grpc.aio.Channel, server: Running, later: Later
) -> None:
    call = channel.unary_unary("/t.Later/Answer")
    waiting = call(b"never")
    task = asyncio.ensure_future(waiting)
    await asyncio.to_thread(server.until, lambda: later.open)
    task.cancel()
    assert await call(b"later", timeout=20) == b"later"
    # The answer that nobody waits for any more is let go.
    loop = later.open[0].get_loop()
    loop.call_soon_threadsafe(later.open[0].set_result, b"too late")
    assert await call(b"later", timeout=20) == b"later"
