"""Header blocks, and what stands in them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jh2 import _hazmat

from services.kit.grpc_server import wire
from services.kit.grpc_server.header_blocks import HeaderDecoder
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
    got = HeaderDecoder(2**20).decode(wire.header_block(pairs))
    expected = [(name.encode(), value.encode().strip(b" \t")) for name, value in pairs]
    assert [(name, value) for name, value, _ in got] == expected


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_bytes_come_back(value: bytes, is_padded: bool) -> None:
    ((_, text, _),) = HeaderDecoder(2**20).decode(wire.header_block((("x-bin", value),)))
    assert b"=" not in text
    padded = text + b"=" * (-len(text) % 4) if is_padded else text
    assert wire.binary_value(padded) == value


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 16_383, 16_384, 70_000])
def test_lengths(length: int) -> None:
    block = wire.header_block((("x", "v" * length),))
    assert HeaderDecoder(2**20).decode(block) == [(b"x", b"v" * length, False)]


def test_a_block_is_for_any_table() -> None:
    assert wire.header_block(()) == b"\x20"
    decoder = HeaderDecoder(2**20)
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
    decoder = HeaderDecoder(1000)
    for block in blocks:
        try:
            headers = decoder.decode(block)
        except wire.ProtocolError:
            return
        try:
            RequestReader().read(headers)
        except MalformedError:
            continue


_fields = st.tuples(
    st.sampled_from([b":path", b":method", b"te", b"x-a", b"x-b"]),
    st.sampled_from([b"", b"POST", b"1", b"v" * 130, b"\xff" * 20]),
    st.booleans(),
)
_blocks = st.one_of(
    st.lists(_fields, max_size=4),  # what an encoder makes of it, with its table
    st.sampled_from([b"\x20", b"\x3f\x61"]),  # the table's size: 0 and 128
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_blocks, max_size=8), st.data())
def test_what_is_remembered_of_a_block_is_what_it_says(made: list, data: st.DataObject) -> None:
    encoder, decoder, plain = _hazmat.Encoder(), HeaderDecoder(2**20), _hazmat.Decoder(2**20)
    sent: list[bytes] = []
    for each in made:
        sent.append(each if isinstance(each, bytes) else encoder.encode(each, None))
        for block in (sent[-1], sent[-1], data.draw(st.sampled_from(sent))):
            try:
                expected = plain.decode(block, True)
            except _hazmat.HPACKError:
                with pytest.raises(wire.ProtocolError):
                    decoder.decode(block)
                return
            assert list(decoder.decode(block)) == list(expected)


def test_a_block_that_comes_again_is_not_read_again() -> None:
    decoder = HeaderDecoder(2**20)
    block = wire.header_block(((":method", "POST"), ("x", "v" * 100)))
    block = block.removeprefix(b"\x20")
    first = decoder.decode(block)
    assert decoder.decode(block) is first
    decoder.decode(b"\x40\x01a\x01b")  # goes into the table
    assert decoder.decode(block) is not first
    # Who never says the same twice is not listened to for it.
    for number in range(200):
        decoder.decode(b"\x00\x01a\x03%03d" % number)
    assert decoder.decode(block) is not decoder.decode(block)


def test_little_is_remembered_of_a_short_block_that_means_much() -> None:
    decoder = HeaderDecoder(2**20)
    value = b"v" * 3_000
    decoder.decode(b"\x40\x01a\x7f" + b"\xb9\x16" + value)  # goes into the table
    for count in range(1, 30):
        block = b"\xbe" * count  # as often as this
        assert decoder.decode(block) == [(b"a", value, False)] * count
    assert sum(map(len, decoder._known.values())) * len(value) < 64 * 4096


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
