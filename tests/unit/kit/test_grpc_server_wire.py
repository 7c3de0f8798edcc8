"""Header blocks, and what stands in them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jh2 import _hazmat

from services.kit.grpc_server import wire
from services.kit.grpc_server.request import MalformedError, RequestReader

GOOD = [
    (b":method", b"POST", False),
    (b":path", b"/a.B/C", False),
    (b"content-type", b"application/grpc", False),
]
_names = st.from_regex(r"[a-z0-9_.-]{1,40}", fullmatch=True).filter(
    lambda n: not n.endswith("-bin")
)
_texts = st.text(st.characters(exclude_categories=["C"]), max_size=300)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(_names, _texts), max_size=8))
def test_a_block_says_what_was_put_in(pairs: list[tuple[str, str]]) -> None:
    got = wire.HeaderDecoder(2**20).decode(wire.header_block(pairs))
    expected = [(name.encode(), value.encode().strip(b" \t")) for name, value in pairs]
    assert [(name, value) for name, value, _ in got] == expected


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_bytes_come_back(value: bytes, is_padded: bool) -> None:
    ((_, text, _),) = wire.HeaderDecoder(2**20).decode(wire.header_block((("x-bin", value),)))
    assert b"=" not in text
    padded = text + b"=" * (-len(text) % 4) if is_padded else text
    assert wire.binary_value(padded) == value


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 16_383, 16_384, 70_000])
def test_lengths(length: int) -> None:
    block = wire.header_block((("x", "v" * length),))
    assert wire.HeaderDecoder(2**20).decode(block) == [(b"x", b"v" * length, False)]


def test_a_block_is_for_any_table() -> None:
    assert wire.header_block(()) == b"\x20"
    decoder = wire.HeaderDecoder(2**20)
    filling = _hazmat.Encoder().encode([(b"x-a", b"1", False)])
    decoder.decode(filling)
    decoder.decode(wire.header_block(((":status", "200"),)))
    with pytest.raises(wire.ProtocolError):  # the entry is gone
        decoder.decode(b"\xbe")


@pytest.mark.parametrize(
    "header",
    [("", "x"), ("A", "x"), ("a b", "x"), ("ä", "x"), ("a", "x\ny"), ("a", "\0"), ("a-bin", "x")],
)
def test_headers_that_cannot_be_sent(header: tuple[str, str]) -> None:
    with pytest.raises(ValueError):
        wire.header_block((header,))


def test_a_large_block_goes_out_in_frames_that_peers_take() -> None:
    block = wire.header_block((("x", "v" * 50_000),))
    rest, got = wire.headers_frame(7, block, wire.END_STREAM), b""
    heads = []
    while rest:
        size = int.from_bytes(rest[:3], "big")
        heads.append((rest[3], rest[4], rest[8]))
        got, rest = got + rest[9 : 9 + size], rest[9 + size :]
        assert size <= wire.MAX_FRAME_BYTES
    assert got == block
    assert heads == [(1, 1, 7), (9, 0, 7), (9, 0, 7), (9, 4, 7)]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_any_block_is_read_or_breaks_the_protocol(blocks: list[bytes]) -> None:
    decoder = wire.HeaderDecoder(1000)
    for block in blocks:
        try:
            headers = decoder.decode(block)
        except wire.ProtocolError:
            return
        try:
            RequestReader().read(headers)
        except MalformedError:
            continue


def test_names_are_remembered_within_bounds() -> None:
    reader = RequestReader()
    for number in range(5_000):
        reader.read([*GOOD, (b"x-%d" % number, b"1", False)])
    reader.read([*GOOD, (b"x" * 5_000, b"1", False)])
    assert len(reader._names) <= 1024
    for _ in range(2):  # what is not remembered is looked at each time
        with pytest.raises(MalformedError):
            reader.read([*GOOD, (b"X-Bad", b"1", False)])


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 4e-3), (b"5u", 5e-6), (b"6n", 6e-9)],
)
def test_timeouts(timeout: bytes, seconds: float) -> None:
    found = RequestReader().read([*GOOD, (b"grpc-timeout", timeout, False)])
    assert found.timeout_s == pytest.approx(seconds)
    assert not found.fault


def test_settings_are_read() -> None:
    read = wire.settings_frame(((4, 1), (0xABCD, 5), (4, 2)))[wire.FRAME_HEAD_BYTES :]
    assert wire.read_settings(read) == {4: 2, 0xABCD: 5}
