"""Requests whose end two parsers might see in different places."""

import pytest

from security.target import CANARY, Target, statuses

INNER = (
    b"POST /mesh/v1/keys HTTP/1.1\r\nhost: x\r\nx-mesh-role: admin\r\n"
    b"x-mesh-key-id: key_bootstrapadmin\r\ncontent-type: application/json\r\n"
    b'content-length: 46\r\n\r\n{"display_name":"%s","role":"ROLE_ADMIN"}' % CANARY.encode()
)
CHUNKED_END = b"0\r\n\r\n"


def _bad() -> dict[str, tuple[bytes, bytes]]:
    """Returns headers and body by what is wrong with them."""
    length = b"content-length: %d\r\n" % len(INNER)
    te = b"transfer-encoding: chunked\r\n"
    return {
        "CL.TE": (length + te, CHUNKED_END + INNER),
        "TE.CL": (te + length, CHUNKED_END + INNER),
        "TE.TE obscure": (te + b"transfer-encoding: x\r\n", CHUNKED_END + INNER),
        "TE twice in one": (b"transfer-encoding: chunked, chunked\r\n", CHUNKED_END + INNER),
        "TE identity": (b"transfer-encoding: identity\r\n" + length, INNER),
        "TE gzip": (b"transfer-encoding: gzip, chunked\r\n", CHUNKED_END + INNER),
        "TE xchunked": (b"transfer-encoding: xchunked\r\n", CHUNKED_END + INNER),
        "TE quoted": (b'transfer-encoding: "chunked"\r\n', CHUNKED_END + INNER),
        "TE with a control": (b"transfer-encoding: \x0bchunked\r\n", CHUNKED_END + INNER),
        "TE space before colon": (b"transfer-encoding : chunked\r\n", CHUNKED_END + INNER),
        "TE folded": (b"transfer-encoding:\r\n chunked\r\n", CHUNKED_END + INNER),
        "CL twice": (b"content-length: 0\r\n" + length, INNER),
        "CL twice the same": (length + length, INNER),
        "CL list": (b"content-length: 0, %d\r\n" % len(INNER), INNER),
        "CL plus": (b"content-length: +%d\r\n" % len(INNER), INNER),
        "CL minus": (b"content-length: -1\r\n", INNER),
        "CL hex": (b"content-length: 0x10\r\n", INNER),
        "CL huge": (b"content-length: 18446744073709551617\r\n", INNER),
        "CL empty": (b"content-length: \r\n", INNER),
        "CL space inside": (b"content-length: 1 0\r\n", INNER),
        "CL space before colon": (b"content-length : 0\r\n", INNER),
        "CL underscore": (b"content_length: 0\r\n", INNER),
        "folded header": (b"x-a: b\r\n c: d\r\n" + length, INNER),
        "bare CR in a header": (b"x-a: b\rcontent-length: 0\r\n", INNER),
        "NUL in a name": (b"content-length\0: 5\r\n", INNER),
        "no colon": (b"content-length 5\r\n", INNER),
        "chunk size of nothing": (te, b"\r\n" + INNER),
        "chunk size negative": (te, b"-1\r\n" + INNER),
        "chunk size with 0x": (te, b"0x0\r\n\r\n" + INNER),
        "chunk size with plus": (te, b"+0\r\n\r\n" + INNER),
        "chunk size huge": (te, b"fffffffffffffffff\r\n" + INNER),
        "chunk not ended": (te, b"1\r\nabc\r\n" + CHUNKED_END + INNER),
        "chunk ended by LF": (te, b"0\n\n" + INNER),
        "chunk extension with LF": (te, b"0;a\nb\r\n\r\n" + INNER),
        "chunk extension": (te, b'0;a="b\r\n\r\n' + INNER + b'"\r\n\r\n'),
        "trailer that frames": (te, b"0\r\ncontent-length: 5\r\n\r\n" + INNER),
    }


BAD = _bad()


def _first(target: Target, headers: bytes, path: bytes = b"/v1/models") -> bytes:
    key = target.user_key.encode()
    return (
        b"POST %s HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\n" % (path, key)
        + headers
        + b"\r\n"
    )


@pytest.mark.parametrize("what", BAD)
def test_shapes(target: Target, what: str) -> None:
    headers, body = BAD[what]
    received = target.raw(_first(target, headers) + body, 0.8)
    seen = statuses(received)
    # What follows may be read as a request of its own, which has no key then.
    assert all(400 <= status < 500 for status in seen), received
    assert b'"secret"' not in received


@pytest.mark.parametrize(
    "what", ["CL.TE", "TE.CL", "TE.TE obscure", "TE identity", "CL twice", "CL plus", "CL minus"]
)
def test_frames_that_contradict_themselves_end_the_connection(target: Target, what: str) -> None:
    headers, body = BAD[what]
    received = target.raw(_first(target, headers) + body + INNER, 10)
    assert statuses(received) in ([400], [501], [400, 400]), received


@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\n\r", b"\r\r\n"])
def test_lines_that_end_otherwise(target: Target, line_end: bytes) -> None:
    request = (_first(target, b"content-length: 0\r\n") + INNER).replace(b"\r\n", line_end)
    seen = statuses(target.raw(request, 0.8))
    assert all(400 <= status < 500 for status in seen), seen


@pytest.mark.parametrize(
    "start",
    [
        b"POST  /v1/models HTTP/1.1\r\n",
        b"POST /v1/models  HTTP/1.1\r\n",
        b"POST\t/v1/models\tHTTP/1.1\r\n",
        b"POST /v1/models HTTP/1.1 \r\n",
        b"POST /v1/models HTTP/1.1\r\n x-a: b\r\n",
        b"\r\n\r\nPOST /v1/models HTTP/1.1\r\n",
        b"POST /v1/models HTTP/2.0\r\n",
        b"POST /v1/models HTTP/1.10\r\n",
        b"POST /v1/models http/1.1\r\n",
        b"POST /v1/models\r\n",
        b"POST /v1/models HTTP/1.1\r\nhost: y\r\n",
        b"POST /v1/\0models HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_first_lines(target: Target, start: bytes) -> None:
    rest = b"host: x\r\ncontent-length: 0\r\n\r\n"
    seen = statuses(target.raw(start + rest + INNER, 0.8))
    assert all(400 <= status < 500 for status in seen), seen


def test_a_call_after_another_on_one_connection_has_its_own_key(target: Target) -> None:
    """Two good requests in one packet, the second without a key."""
    first = _first(target, b"content-length: 0\r\n").replace(b"POST", b"GET")
    received = target.raw(first + INNER, 10, 4)
    assert statuses(received) == [200, 401]
