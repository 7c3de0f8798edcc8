"""What auth decides about a body is what runs, however the body is written."""

import json
import struct
import time

import grpc
import httpx
import pytest

from e2e.mesh import CHAT, EMBED
from infermesh.inference.v1 import inference_service_pb2 as pb
from security.target import ROUNDS, Target, dice

REST = b'"messages":[{"role":"user","content":"Hi"}],"max_tokens":1'
CHAT_METHOD = "/infermesh.inference.v1.InferenceService/Chat"
STREAM_METHOD = "/infermesh.inference.v1.InferenceService/StreamChat"


def post(target: Target, body: bytes, path: str = "/v1/chat/completions") -> httpx.Response:
    return target.user.post(path, content=body, headers={"content-type": "application/json"})


def ran(reply: httpx.Response) -> str | None:
    """Returns the model that answered; None for a refusal, which must be a clear one."""
    assert reply.status_code < 500, reply.text
    if reply.status_code == 200:
        return str(reply.json()["model"])
    assert set(reply.json()) == {"error"}
    return None


def names(first: str, second: str) -> list[bytes]:
    """Returns bodies that say two models."""
    a, b = (json.dumps(each).encode() for each in (first, second))
    return [
        b'{"model":%s,"model":%s,%s}' % (a, b, REST),
        b'{"model":%s,%s,"model":%s}' % (a, REST, b),
        b'{%s,"model":%s,"model":%s}' % (REST, a, b),
        b'{"model":%s,"mod\\u0065l":%s,%s}' % (a, b, REST),
        b'{"mod\\u0065l":%s,"model":%s,%s}' % (a, b, REST),
        b'{"model":%s,"Model":%s,%s}' % (a, b, REST),
        b'{"model":%s,"MODEL":%s,%s}' % (a, b, REST),
        b'{"model":%s," model":%s,%s}' % (a, b, REST),
        b'{"model":%s,"model\\u0000":%s,%s}' % (a, b, REST),
        b'{"model":%s,"x":{"model":%s},%s}' % (a, b, REST),
        b'{"x":{"model":%s},"model":%s,%s}' % (a, b, REST),
        b'{"model":%s,%s}{"model":%s,%s}' % (a, REST, b, REST),
        b'{"model":%s,%s}\n{"model":%s}' % (a, REST, b),
        b'{"model":[%s,%s],%s}' % (a, b, REST),
        b'{"model":{"model":%s},%s}' % (b, REST),
        b'{"model":%s,"model":null,%s}' % (a, REST),
        b'{"model":%s,/* "model":%s, */%s}' % (a, b, REST),
        b'{"model":%s,"fallback_models":[%s],%s}' % (a, b, REST),
        b'{"model":%s,%s,"fallback_models":[%s],"fallback_models":[%s]}' % (a, REST, a, b),
    ]


@pytest.mark.parametrize(("first", "second"), [(CHAT, EMBED), (EMBED, CHAT)])
def test_two_models_in_json(target: Target, first: str, second: str) -> None:
    for body in names(first, second):
        assert ran(post(target, body)) in (None, CHAT), body


def test_a_model_that_is_not_allowed_by_each_path(target: Target) -> None:
    for path in ("/v1/embeddings", "/v1/completions", "/v1/chat/completions"):
        body = b'{"model":"%s","input":"x","prompt":"x",%s}' % (EMBED.encode(), REST)
        assert post(target, body, path).status_code == 404, path


def wrap(number: int, value: bytes) -> bytes:
    """Returns a protobuf field of bytes."""
    size = len(value)
    prefix = bytes([number << 3 | 2])
    while size > 127:
        prefix, size = prefix + bytes([size & 127 | 128]), size >> 7
    return prefix + bytes([size]) + value


def typed() -> list[tuple[str, bytes]]:
    """Returns methods and messages that say two models, or say one oddly."""
    text = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=[pb.ContentPart(text="Hi")])
    rest = pb.ChatRequest(messages=[text], max_tokens=1).SerializeToString()
    good, bad, none = (wrap(1, each.encode()) for each in (CHAT, EMBED, ""))
    chats = [
        good + bad + rest,
        bad + good + rest,
        good + rest + bad,
        bad + rest + good,
        rest + good,
        rest + bad,
        good + rest + none,
        bad + none + rest,
        good + b"\x08\x01" + rest,
        b"\x08\x01" + bad + rest,
        b"\x0b" + bad + b"\x0c" + good + rest,
        good + rest + b"\x0b" + bad + b"\x0c",
        good + rest + b"\xfa\x01\x01x",
        b"\x8a\x80\x80\x80\x80\x00" + bad[1:] + good + rest,
        good + rest + b"\x8a\x80\x00" + bad[1:],  # field 1, its number written long
        wrap(1, CHAT.encode() + b"\0" + EMBED.encode()) + rest,
        wrap(1, b"\xff\xfe") + rest,
        good[:-3],
        b"\xff" * 64,
        b"\x0a" + b"\xff" * 9 + b"\x01" + rest,
        b"\x1b" * 2000 + good + rest,
    ]
    made = [(CHAT_METHOD, chat) for chat in chats]
    made += [(STREAM_METHOD, wrap(1, chat)) for chat in chats]
    made += [
        (STREAM_METHOD, wrap(1, good + rest) + wrap(1, bad)),
        (STREAM_METHOD, wrap(1, bad) + wrap(1, good + rest)),
        (STREAM_METHOD, wrap(1, bad + rest) + wrap(1, good)),
    ]
    return made


def test_two_models_in_protobuf(target: Target) -> None:
    metadata = (("authorization", f"Bearer {target.user_key}"),)
    passed = 0
    with grpc.insecure_channel(target.mesh.address) as channel:
        for method, message in typed():
            for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
                try:
                    call = channel.unary_stream(method)(
                        message, metadata=metadata, compression=compression, timeout=60
                    )
                    answers = list(call)
                except grpc.RpcError as error:
                    assert error.code() not in (
                        grpc.StatusCode.UNKNOWN,
                        grpc.StatusCode.UNAVAILABLE,
                        grpc.StatusCode.DEADLINE_EXCEEDED,
                    ), (method, message, error)
                    continue
                passed += 1
                for answer in answers:
                    assert EMBED.encode() not in answer, (method, message)
    assert passed >= 6, "the messages are refused for something else"


FRAMES = {
    "two messages": lambda good, bad: _framed(good) + _framed(bad),
    "two messages, the bad one first": lambda good, bad: _framed(bad) + _framed(good),
    "a flag that is none": lambda good, bad: b"\x02" + _framed(good)[1:],
    "compressed, it says": lambda good, bad: b"\x01" + _framed(good)[1:],
    "length too long": lambda good, bad: b"\0" + struct.pack(">I", 2**31) + good,
    "length too short": lambda good, bad: b"\0" + struct.pack(">I", 5) + good,
    "no frame": lambda good, bad: good,
    "trailers frame": lambda good, bad: b"\x80" + _framed(good)[1:],
}


def _framed(message: bytes) -> bytes:
    return b"\0" + struct.pack(">I", len(message)) + message


@pytest.mark.parametrize("what", FRAMES)
@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc-web"])
def test_frames_of_messages(target: Target, what: str, kind: str) -> None:
    text = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=[pb.ContentPart(text="Hi")])
    good, bad = (
        pb.ChatRequest(model=name, messages=[text], max_tokens=1).SerializeToString()
        for name in (CHAT, EMBED)
    )
    headers = {"content-type": kind, "te": "trailers", "authorization": f"Bearer {target.user_key}"}
    reply = target.user.post(CHAT_METHOD, content=FRAMES[what](good, bad), headers=headers)
    assert reply.status_code < 500, reply.text
    assert EMBED.encode() not in reply.content.partition(b"grpc-status")[0] or reply.headers.get(
        "grpc-status"
    ) not in (None, "0")


def bombs() -> list[bytes]:
    model = b'"model":"%s"' % CHAT.encode()
    return [
        b"{%s,%s,%s}" % (model, REST, b'"x":' + b"[" * 100_000 + b"]" * 100_000),
        b"{%s,%s,%s}" % (model, REST, b'"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b"{%s,%s,%s}" % (model, REST, b'"x":' + b"9" * 1_000_000),
        b"{%s,%s,%s}" % (model, REST, b'"x":1e' + b"9" * 1000),
        b"{%s,%s,%s}" % (model, REST, b'"x":-0.' + b"0" * 100_000 + b"1"),
        b"{%s,%s,%s}" % (model, REST, b",".join(b'"k%d":0' % i for i in range(100_000))),
        b"{%s,%s,%s}" % (model, REST, b",".join([b'"k":0'] * 100_000)),
        b'{%s,"messages":[%s]}' % (model, b",".join([b'{"role":"user"}'] * 100_000)),
        b'{"model":"%s",%s}' % (b"a" * 1_000_000, REST),
        b'{"model":"%s",%s}' % (b"\\u0061" * 100_000, REST),
        b'{%s,%s,"max_tokens":1e308}' % (model, REST),
        b'{%s,%s,"max_tokens":-1}' % (model, REST),
        b'{%s,%s,"max_tokens":9223372036854775808}' % (model, REST),
        b'{%s,%s,"n":1000000000}' % (model, REST),
        b'{%s,%s,"stop":%s}' % (model, REST, json.dumps(["x"] * 10_000).encode()),
        b"{%s,%s}" % (model, b'"messages":[{"role":"user","content":"\\ud800"}],"max_tokens":1'),
        b'{%s,"max_tokens":1,"messages":[{"role":"user","content":"\xed\xa0\x80"}]}' % model,
        b"\xff\xfe{\0}\0",
        b"{" + b" " * 2_000_000 + b"}",
        b"null",
        b'""',
        b"1",
    ]


def test_json_bombs(target: Target) -> None:
    for body in bombs():
        started = time.monotonic()
        reply = post(target, body)
        assert reply.status_code < 500, (body[:200], reply.text)
        assert time.monotonic() - started < 40, body[:200]


def test_json_at_random(target: Target) -> None:
    rng = dice("json")
    # Four times a bound, far from each other: what loses one of them asks for no long answer.
    whole = (
        b'{"max_completion_tokens":1,"model":"%s",%s,"stream":false,"temperature":0.5,'
        b'"stop":[" ","e","\\n"],"max_tokens":1}' % (CHAT.encode(), REST)
    )
    marks = (b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\0", b"\xff", b"1e", b"null")
    for _ in range(ROUNDS):
        body = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(body))
            how = rng.randrange(3)
            if how == 0:
                body[at:at] = rng.choice(marks)
            elif how == 1:
                del body[at : at + rng.choice((1, 5, 50))]
                body = body or bytearray(b"x")
            else:
                body[at] = rng.randrange(256)
        assert ran(post(target, bytes(body))) in (None, CHAT), bytes(body)
