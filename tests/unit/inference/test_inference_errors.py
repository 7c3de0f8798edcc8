import json

import pytest
from google.rpc import error_details_pb2

from services.inference import errors
from services.inference.transport_errors import (
    EngineConnectError,
    EngineConnectionError,
    EngineTimeoutError,
)


def body(**error):
    return json.dumps({"error": error}).encode()


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, "ENGINE_REJECTED"),
        (413, "ENGINE_REJECTED"),
        (422, "ENGINE_REJECTED"),
        (501, "ENGINE_REJECTED"),
        (401, "ENGINE_FAILED"),
        (403, "ENGINE_FAILED"),
        (500, "ENGINE_FAILED"),
        (302, "ENGINE_FAILED"),
        (429, "OVERLOADED"),
        (502, "ENGINE_UNAVAILABLE"),
        (503, "ENGINE_UNAVAILABLE"),
    ],
)
def test_status_decides(status, reason):
    # The text says something else on purpose.
    error = errors.from_response(status, body(message="Loading model, invalid, timeout"))
    assert error.reason_name == reason


def test_the_engines_words_are_kept():
    error = errors.from_response(
        400, body(message="too long", type="exceed_context_size_error", param="messages", code=400)
    )
    assert json.loads(error.openai_body()) == {
        "error": {
            "message": "too long",
            "type": "exceed_context_size_error",
            "param": "messages",
            "code": "engine_rejected",
        }
    }
    assert error.metadata == {"engine_type": "exceed_context_size_error"}


def test_credentials_of_the_node_are_not_the_callers_business():
    assert "sk-" not in errors.from_response(401, body(message="bad key sk-123")).message


@pytest.mark.parametrize(
    "answer", [b"", b"oops", b"[]", b'{"error": 3}', b'{"error": {"message": 4}}', b"\xff"]
)
def test_an_answer_that_cannot_be_read(answer):
    assert errors.from_response(400, answer).message == "The engine answered 400."


def test_other_shapes_of_words():
    assert errors.from_response(400, b'{"error": "no"}').message == "no"
    assert errors.from_response(400, b'{"message": "no"}').message == "no"


def test_an_error_in_a_stream():
    assert errors.code_of({"code": 400}) == 400
    assert errors.code_of({"code": "x"}) == errors.code_of({}) == 500


@pytest.mark.parametrize(
    ("error", "has_answered", "reason"),
    [
        (EngineConnectError(), False, "ENGINE_UNAVAILABLE"),
        (EngineConnectionError(), False, "ENGINE_UNAVAILABLE"),
        (EngineConnectionError(), True, "ENGINE_FAILED"),
        (EngineTimeoutError(), False, "ENGINE_TIMEOUT"),
        (EngineTimeoutError(), True, "ENGINE_TIMEOUT"),
    ],
)
def test_broken_connections(error, has_answered, reason):
    assert errors.from_transport(error, has_answered=has_answered).reason_name == reason


def test_a_full_node_says_when_to_come_back():
    error = errors.overloaded("The node's queue is full.", 7)
    assert (error.reason_name, error.http_status, error.retry_after_s) == ("OVERLOADED", 429, 7)
    assert dict(error.trailers())["retry-after"] == "7"
    retry = error_details_pb2.RetryInfo()
    assert [d.Unpack(retry) for d in error.to_status().details if d.Is(retry.DESCRIPTOR)] == [True]
    assert retry.retry_delay.seconds == 7


def test_others_do_not_say_when():
    error = errors.unavailable("no")
    assert "retry-after" not in dict(error.trailers())
    assert len(error.to_status().details) == 1
