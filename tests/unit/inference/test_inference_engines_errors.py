import pytest

from services.inference.errors import code_of, from_engine, from_response


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 503}, 503),
        ({"code": 12}, 500),
        ({"code": None, "type": "server_error"}, 500),
        ({"code": "rate_limit_exceeded", "type": "tokens"}, 429),
        ({"code": None, "type": "insufficient_quota"}, 429),
        ({"code": "context_length_exceeded", "type": "invalid_request_error"}, 400),
        ({"type": "overloaded_error"}, 503),
        ({"message": "rate_limit_exceeded"}, 500),
        ({"type": ["rate_limit_error"]}, 500),
        ({}, 500),
    ],
)
def test_errors_in_streams_stand_for_statuses_by_code_never_by_text(error, status):
    assert code_of(error) == status


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        # TGI's generation that failed is not the caller's fault.
        (424, b'{"error":"x","error_type":"generation"}', "ENGINE_FAILED"),
        (422, b'{"error":"x","error_type":"validation"}', "ENGINE_REJECTED"),
        # The model was there when the node last asked: Ollama, vLLM, OpenAI.
        (404, b'{"error":"model not found"}', "ENGINE_UNAVAILABLE"),
        (
            404,
            b'{"error":{"type":"NotFoundError","param":"model","code":404}}',
            "ENGINE_UNAVAILABLE",
        ),
        (404, b'{"error":{"code":"model_not_found","type":"x"}}', "ENGINE_UNAVAILABLE"),
        (404, b'{"error":{"code":404,"type":"not_found_error"}}', "ENGINE_REJECTED"),
        # SGLang's stand at the top of the body.
        (400, b'{"object":"error","message":"x","type":"BadRequestError"}', "ENGINE_REJECTED"),
    ],
)
def test_what_the_engines_own_forms_mean(status, body, reason):
    assert from_response(status, body).reason_name == reason


def test_a_field_at_the_top_of_the_body_is_named():
    body = b'{"object":"error","message":"m","type":"BadRequestError","param":"stop","code":400}'
    error = from_response(400, body)
    assert (error.param, error.message) == ("stop", "m")
    assert from_engine(400, {}).param is None
