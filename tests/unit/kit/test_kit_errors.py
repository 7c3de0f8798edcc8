import base64
import urllib.parse

import grpc
import pytest

from infermesh.errors.v1 import errors_pb2
from services.kit.errors import MeshError, from_rpc_error

REASON = errors_pb2.ERROR_REASON_INVALID_ARGUMENT
CHARACTERS = ["a", "\u00e9", "\u6f22", "\U0001f600", '"', "\\", "%", "\0"]


def wire_bytes(error: MeshError) -> int:
    """Counts as HTTP stacks do: names, values and 32 bytes for each."""
    plain = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
    total = len("grpc-message") + len(urllib.parse.quote(error.message, safe=plain)) + 32
    for name, value in error.trailers():
        wire = base64.b64encode(value) if isinstance(value, bytes) else value.encode("ascii")
        total += len(name) + len(wire) + 32
    return total


@pytest.mark.parametrize("character", CHARACTERS)
def test_all_trailers_together_stay_below_8_kib(character: str) -> None:
    text = character * 5000
    error = MeshError(REASON, text, param=text, metadata={"a": text, "b": text}, retry_after_s=3600)
    assert wire_bytes(error) < 8000
    assert text.startswith(error.message)
    assert len(error.message) >= 1024 // 12
    assert error.param is not None
    assert 50 <= len(error.param) <= 200


def test_short_texts_stay_as_they_are() -> None:
    message = "Straße: " + "x" * 900
    error = MeshError(REASON, message, param="messages[0].role", metadata={"model": "m"})
    assert error.message == message
    assert (error.param, error.metadata) == ("messages[0].role", {"model": "m"})
    assert MeshError(REASON, "no").param is None


def test_what_was_cut_is_not_cut_again() -> None:
    once = MeshError(REASON, "\u6f22" * 999, param="p" * 999, metadata={"m": "\u6f22" * 999})
    twice = MeshError(REASON, once.message, param=once.param, metadata=once.metadata)
    assert (twice.message, twice.param, twice.metadata) == (once.message, once.param, once.metadata)


@pytest.mark.parametrize("retry_after_s", [None, 1, 60])
def test_another_service_reads_all_of_it(retry_after_s: int | None) -> None:
    sent = MeshError(
        errors_pb2.ERROR_REASON_OVERLOADED,
        "full",
        param="p",
        metadata={"m": "x"},
        retry_after_s=retry_after_s,
    )
    trailers = grpc.aio.Metadata(*sent.trailers())
    read = from_rpc_error(
        grpc.aio.AioRpcError(sent.code, grpc.aio.Metadata(), trailers, sent.message)
    )
    assert read is not None
    assert (read.reason, read.message, read.param) == (sent.reason, "full", "p")
    assert (read.metadata, read.retry_after_s) == ({"m": "x"}, retry_after_s)
