"""What is decided about calls, in the form that Envoy reads."""

import base64
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from google.rpc import error_details_pb2, status_pb2

from infermesh.access.v1 import access_pb2
from services.auth.store import Key
from unit.auth.auth_samples import (
    ADMIN,
    GRPC_CHAT,
    LIST_KEYS,
    NOW,
    REST_CHAT,
    SECRETS,
    USER,
    check_request,
    grpc_headers,
    make_decider,
    make_key,
    make_ring,
    read_reply,
    rest_headers,
)

MODEL = {"model": "smollm2-135m"}
NODE = SECRETS[access_pb2.ROLE_NODE]


def decide(path: str, headers: Mapping[str, str], **metadata: Any) -> tuple[Any, dict[str, str]]:
    request = check_request(path, headers, **metadata)
    return read_reply(make_decider(make_ring()).decide(request))


def rest_error(reply: Any) -> Any:
    return orjson.loads(reply.denied_response.body)["error"]


def test_a_rest_chat_passes_with_the_callers_identity() -> None:
    reply, headers = decide(REST_CHAT, rest_headers(USER), rest=MODEL)
    assert reply.status.code == 0
    assert headers == {
        "x-mesh-key-id": "key_user",
        "x-mesh-tenant": "acme",
        "x-mesh-role": "user",
        "x-mesh-model": "smollm2-135m",
    }
    assert set(reply.ok_response.headers_to_remove) == {"authorization", "x-api-key"}
    overwrite = 2  # HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    assert {option.append_action for option in reply.ok_response.headers} == {overwrite}


@pytest.mark.parametrize("field", ["model", "chat.model"])
def test_a_typed_chat_passes(field: str) -> None:
    # A body that is not declared as JSON is not read.
    reply, headers = decide(
        GRPC_CHAT, grpc_headers(USER), rest={"body": "invalid"}, typed={field: "smollm2-135m"}
    )
    assert reply.status.code == 0
    assert headers["x-mesh-model"] == "smollm2-135m"


def test_services_are_told_of_a_project_that_is_not_the_default() -> None:
    ring = make_ring()
    key = make_key(ring, access_pb2.ROLE_USER)
    values = {name: getattr(key, name) for name in Key.__slots__}
    ring.apply([Key(**{**values, "project": "web"})])
    request = check_request(REST_CHAT, rest_headers(USER), rest=MODEL)
    reply, headers = read_reply(make_decider(ring).decide(request))
    assert reply.status.code == 0
    assert headers["x-mesh-project"] == "web"


def test_a_call_that_names_no_model_gets_no_model_header() -> None:
    reply, headers = decide(LIST_KEYS, grpc_headers(ADMIN))
    assert reply.status.code == 0
    assert "x-mesh-model" not in headers
    assert "x-mesh-model" in reply.ok_response.headers_to_remove


@pytest.mark.parametrize(
    "credentials",
    [
        {"authorization": f"Bearer {USER}"},
        {"authorization": f"bearer {USER}"},
        {"x-api-key": USER},
        {"authorization": "Basic Zm9v", "x-api-key": USER},
    ],
)
def test_ways_to_send_a_key(credentials: Mapping[str, str]) -> None:
    headers = rest_headers(USER)
    del headers["authorization"]
    reply, _ = decide(REST_CHAT, {**headers, **credentials}, rest=MODEL)
    assert reply.status.code == 0


@pytest.mark.parametrize(
    "credentials",
    [
        {},
        {"authorization": ""},
        {"authorization": USER},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {USER}"},
        {"authorization": f"Bearer {USER}x"},
        {"authorization": f"Bearer im-{'x' * 43}"},
        {"authorization": f"Bearer im-{'é' * 43}"},
        {"authorization": f"Bearer {USER},Bearer {USER}"},
        {"x-api-key": "im-"},
    ],
)
def test_no_valid_key_is_401(credentials: Mapping[str, str]) -> None:
    headers = rest_headers(USER)
    del headers["authorization"]
    # The body is broken and the path unknown as well: who is nobody is told nothing of it.
    reply, sent = decide("/nowhere", {**headers, **credentials}, rest={"body": "invalid"})
    assert reply.status.code == 16
    assert reply.denied_response.status.code == 401
    assert rest_error(reply)["code"] == "invalid_api_key"
    assert sent == {"content-type": "application/json", "www-authenticate": "Bearer"}


def test_a_revoked_key_is_401() -> None:
    ring = make_ring()
    decider = make_decider(ring)
    request = check_request(REST_CHAT, rest_headers(USER), rest=MODEL)
    assert read_reply(decider.decide(request))[0].status.code == 0

    key = make_key(ring, access_pb2.ROLE_USER)
    values = {name: getattr(key, name) for name in Key.__slots__}
    ring.apply([Key(**{**values, "revoke_time": NOW})])

    assert read_reply(decider.decide(request))[0].denied_response.status.code == 401


def test_an_unknown_url_is_404_and_named_as_the_caller_wrote_it() -> None:
    headers = {"authorization": f"Bearer {USER}", "content-type": "application/json"}
    reply, _ = decide("/v2/nope?token=secret", headers)
    assert reply.denied_response.status.code == 404
    assert rest_error(reply)["code"] == "unknown_url"
    assert rest_error(reply)["message"] == "Unknown request URL: POST /v2/nope"


@pytest.mark.parametrize(
    "path", ["/infermesh.auth.v1.KeyService/Nope", f"{LIST_KEYS}?x=1", f"/{LIST_KEYS}", ""]
)
def test_what_is_not_exactly_an_rpc_is_unknown(path: str) -> None:
    reply, headers = decide(path, grpc_headers(ADMIN))
    assert headers["grpc-status"] == "5"
    assert reply.status.code == 5


@pytest.mark.parametrize(("path", "secret"), [(LIST_KEYS, USER), (REST_CHAT, NODE)])
def test_another_role_is_403_before_the_arguments_are_read(path: str, secret: str) -> None:
    reply, _ = decide(path, rest_headers(secret), rest={"body": "invalid"})
    assert reply.status.code == 7
    assert reply.denied_response.status.code == 403
    assert rest_error(reply)["code"] == "permission_denied"


def test_broken_json_is_400() -> None:
    reply, _ = decide(REST_CHAT, rest_headers(USER), rest={"body": "invalid"})
    assert reply.denied_response.status.code == 400
    assert rest_error(reply)["code"] == "invalid_json"


@pytest.mark.parametrize(
    "rest", [None, {}, {"model": ""}, {"model": 5}, {"model": ["a"]}, {"model": None}]
)
def test_a_missing_model_is_400(rest: Mapping[str, Any] | None) -> None:
    # What `grpc_field_extraction` says does not stand in for it.
    reply, _ = decide(REST_CHAT, rest_headers(USER), rest=rest, typed={"model": "other"})
    assert reply.denied_response.status.code == 400
    assert rest_error(reply)["code"] == "invalid_argument"
    assert rest_error(reply)["param"] == "model"


@pytest.mark.parametrize("model", ["a b", "a\r\nx-mesh-role: admin", "x" * 100_000, "\x00", "–"])
def test_a_name_that_no_model_can_have_is_404(model: str) -> None:
    reply, _ = decide(REST_CHAT, rest_headers(USER), rest={"model": model})
    error = rest_error(reply)
    assert reply.denied_response.status.code == 404
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert error["message"].startswith("The model `")
    assert len(error["message"]) < 300


def test_grpc_callers_get_the_status_with_its_details() -> None:
    reply, headers = decide(GRPC_CHAT, grpc_headers(USER), typed={"model": "a b"})
    assert headers["grpc-status"] == "5"
    details = headers["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("MODEL_NOT_FOUND", "infermesh")
    assert reply.denied_response.body == status.message


def test_a_request_that_does_not_parse_is_refused() -> None:
    reply, headers = read_reply(make_decider(make_ring()).decide(None))
    assert reply.status.code == 3
    assert headers["grpc-status"] == "3"
