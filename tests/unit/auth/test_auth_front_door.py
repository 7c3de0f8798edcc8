"""What auth answers the front door before a body is read, and to web pages."""

import dataclasses

import pytest

from infermesh.access.v1 import access_pb2
from infermesh.auth.v1 import audit_service_pb2 as pb
from services.auth.audit import Recorder
from services.auth.rules import Rules
from unit.auth.auth_samples import (
    REST_CHAT,
    USER,
    check_request,
    grpc_headers,
    make_decider,
    make_key,
    make_ring,
    read_reply,
    rest_headers,
)

PAGE = "https://app.example.com"


def early(headers: dict[str, str], events: list[bytes] | None = None):
    """Asks as Envoy does before it reads a body, and returns status, HTTP status and headers."""
    request = check_request("/v1/chat/completions", headers)
    request.attributes.context_extensions["stage"] = "identity"
    recorder = Recorder(lambda event, must: (events if events is not None else []).append(event))
    return read_reply(make_decider(make_ring(), recorder).decide(request))


def test_who_is_known_may_send_the_body_and_nothing_more_is_said() -> None:
    reply, headers = early({"authorization": f"Bearer {USER}"})
    assert reply.status.code == 0
    assert reply.HasField("ok_response")
    # The key must still be there when auth is asked what the call may do.
    assert (headers, list(reply.ok_response.headers_to_remove)) == ({}, [])


def test_an_early_yes_is_no_audit_event_and_an_early_no_is_one() -> None:
    events: list[bytes] = []
    early({"x-api-key": USER}, events)
    assert events == []
    early({"x-request-id": "one"}, events)
    event = pb.AuditEvent.FromString(events[0])
    assert (event.kind, event.outcome) == (pb.AUDIT_KIND_DENIAL, "INVALID_API_KEY")
    assert (event.rpc, event.request_id) == ("/v1/chat/completions", "one")


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer im-" + "x" * 43}])
def test_who_is_not_is_refused_in_the_callers_dialect(headers: dict[str, str]) -> None:
    reply, said = early({**headers, "content-type": "application/json"})
    assert (reply.denied_response.status.code, said["content-type"]) == (401, "application/json")
    reply, said = early({**headers, "content-type": "application/grpc"})
    assert said["grpc-status"] == "16"
    assert "grpc-status-details-bin" in said


def asked_by(origin: str | None, *origins: str):
    ring = make_ring()
    key = make_key(ring, access_pb2.ROLE_USER)
    ring.apply([dataclasses.replace(key, rules=Rules(cors_origins=origins))])
    headers = {**rest_headers(USER), **({} if origin is None else {"origin": origin})}
    request = check_request(REST_CHAT, headers, rest={"model": "smollm2-135m"})
    return read_reply(make_decider(ring).decide(request))[0]


@pytest.mark.parametrize("origin", [None, PAGE, PAGE.upper()])
def test_a_key_of_a_web_page_passes_from_it_and_without_one(origin: str | None) -> None:
    assert asked_by(origin, "https://other.example.com", PAGE).status.code == 0


@pytest.mark.parametrize(
    "origin",
    ["null", "", "*", f"{PAGE}.evil.com", f"{PAGE}:8443", "http://app.example.com", f"{PAGE}, x"],
)
def test_a_key_of_a_web_page_is_refused_from_others(origin: str) -> None:
    denied = asked_by(origin, PAGE).denied_response
    assert denied.status.code == 403
    assert "permission_denied" in denied.body


def test_a_key_without_origins_does_not_look_at_them() -> None:
    assert asked_by("https://evil.example.com").status.code == 0


def test_origins_hold_for_grpc_too() -> None:
    ring = make_ring()
    key = make_key(ring, access_pb2.ROLE_USER)
    ring.apply([dataclasses.replace(key, rules=Rules(cors_origins=(PAGE,)))])
    headers = {**grpc_headers(USER), "origin": "https://evil.example.com"}
    request = check_request("/infermesh.inference.v1.InferenceService/Chat", headers)
    reply, said = read_reply(make_decider(ring).decide(request))
    assert (reply.denied_response.status.code, said["grpc-status"]) == (403, "7")
