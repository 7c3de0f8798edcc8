"""Which events are made of decisions, and what they hold."""

from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from infermesh.access.v1 import access_pb2
from infermesh.auth.v1 import audit_service_pb2 as pb
from services.auth import access, audit_policy, contracts
from services.auth.audit import Recorder
from services.auth.audit_limit import DenialLimit
from services.auth.decision import Decider
from unit.auth.auth_samples import (
    ADMIN,
    LIST_KEYS,
    REST_CHAT,
    SECRETS,
    USER,
    check_request,
    grpc_headers,
    make_ring,
    read_reply,
    rest_headers,
)

NODE = SECRETS[access_pb2.ROLE_NODE]
ATTACH = "/infermesh.registry.v1.NodeService/AttachNode"
RECORD_USAGE = "/infermesh.metrics.v1.UsageService/RecordUsage"
LIST_MODELS = "/infermesh.routing.v1.OpenAIModelService/ListOpenAIModels"
BAD = "im-" + "x" * 43
MODEL = {"model": "smollm2-135m"}


@dataclass
class World:
    """A decider whose events are kept in a list."""

    inference: bool = False
    is_full: bool = False
    now: float = 0.0
    events: list[pb.AuditEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.recorder = Recorder(self._append, clock=lambda: self.now, now_us=lambda: 1_000_001)
        table = access.build_table(contracts.services())
        marked = audit_policy.mark(table, inference=self.inference)
        self._decider = Decider(make_ring(), marked, access.ModelNames(), self.recorder)

    def _append(self, payload: bytes, must: bool) -> None:
        if self.is_full:
            raise OSError("full")
        self.events.append(pb.AuditEvent.FromString(payload))

    def decide(self, path: str, headers: dict[str, str], **metadata: Any) -> int:
        reply, _ = read_reply(self._decider.decide(check_request(path, headers, **metadata)))
        return int(reply.status.code)


def test_an_administrative_call_is_written_down_before_it_goes_on() -> None:
    world = World()
    assert world.decide(LIST_KEYS, rest_headers(ADMIN, "/mesh/v1/keys?page_size=1")) == 0
    [event] = world.events
    event_id, event.event_id = event.event_id, ""
    assert len(bytes.fromhex(event_id)) == 16
    expected = pb.AuditEvent(
        kind=pb.AUDIT_KIND_CALL,
        key_id="key_admin",
        tenant="acme",
        role="admin",
        source="127.0.0.1",
        rpc=LIST_KEYS,
        resource="/mesh/v1/keys",
        request_id="1f0e2d3c-4b5a-4978-8695-a4b3c2d1e0f9",
        outcome="OK",
        count=1,
    )
    expected.time.FromMicroseconds(1_000_001)
    assert event == expected


@pytest.mark.parametrize(
    ("path", "secret", "written"),
    [
        (LIST_KEYS, ADMIN, True),
        (ATTACH, NODE, True),
        (RECORD_USAGE, ADMIN, True),
        # Several a second from each node.
        (RECORD_USAGE, NODE, False),
        (LIST_MODELS, ADMIN, False),
        (LIST_MODELS, USER, False),
    ],
)
def test_what_is_administrative(path: str, secret: str, written: bool) -> None:
    world = World()
    assert world.decide(path, grpc_headers(secret)) == 0
    assert bool(world.events) == written


@pytest.mark.parametrize("inference", [False, True])
def test_inference_is_written_down_where_it_is_asked_for(inference: bool) -> None:
    world = World(inference)
    assert world.decide(REST_CHAT, rest_headers(USER), rest=MODEL) == 0
    found = [(e.kind, e.key_id, e.resource) for e in world.events]
    assert found == ([(pb.AUDIT_KIND_INFERENCE, "key_user", "smollm2-135m")] if inference else [])


@pytest.mark.parametrize(
    ("path", "headers", "outcome", "key_id", "presented"),
    [
        (LIST_KEYS, grpc_headers(USER), "PERMISSION_DENIED", "key_user", ""),
        (LIST_KEYS, grpc_headers(BAD), "INVALID_API_KEY", "", "im-xxxx"),
        (LIST_KEYS, grpc_headers("hunter2"), "INVALID_API_KEY", "", ""),
        (LIST_KEYS, {}, "INVALID_API_KEY", "", ""),
        ("/nowhere\0", grpc_headers(USER), "UNKNOWN_URL", "key_user", ""),
        (ATTACH, grpc_headers(USER), "PERMISSION_DENIED", "key_user", ""),
    ],
)
def test_a_denial_says_who_where_from_and_why(
    path: str, headers: dict[str, str], outcome: str, key_id: str, presented: str
) -> None:
    world = World()
    assert world.decide(path, headers) != 0
    [event] = world.events
    assert event.kind == pb.AUDIT_KIND_DENIAL
    assert (event.outcome, event.key_id, event.presented) == (outcome, key_id, presented)
    assert (event.source, event.rpc) == ("127.0.0.1", path.replace("\0", ""))


def test_no_secret_is_written_down() -> None:
    world = World()
    for secret in (USER, ADMIN, BAD):
        world.decide(LIST_KEYS, grpc_headers(secret))
    assert len(world.events) == 3
    for event in world.events:
        assert not any(s[8:] in str(event) for s in (USER, ADMIN, BAD))


def test_a_flood_of_denials_is_counted_and_summarised() -> None:
    world = World()
    for _ in range(1000):
        world.decide(LIST_KEYS, grpc_headers(BAD))
    written = len(world.events)
    assert written == DenialLimit.SOURCE_BURST
    # Who tries to join is still seen.
    world.decide(ATTACH, grpc_headers(BAD))
    assert len(world.events) == written + 1
    world.recorder.summarise()
    summary = world.events[-1]
    assert (summary.kind, summary.count) == (pb.AUDIT_KIND_SUPPRESSED, 1000 - written)
    assert orjson.loads(summary.after) == {"busiest_sources": {"127.0.0.1": 1000 - written}}
    count = len(world.events)
    world.recorder.summarise()
    assert len(world.events) == count
    world.now = 3.0
    for _ in range(100):
        world.decide(LIST_KEYS, grpc_headers(BAD))
    assert len(world.events) == count + 3


def test_many_sources_together_are_bounded_too() -> None:
    now = [0.0]
    limit = DenialLimit(lambda: now[0])
    admitted = sum(limit.admit(f"192.0.2.{n}") for n in range(10_000))
    assert admitted == DenialLimit.BURST
    assert limit.take_suppressed()[0] == 10_000 - admitted
    now[0] = 60.0
    assert sum(limit.admit(f"198.51.100.{n}") for n in range(10_000)) == DenialLimit.BURST


def test_an_administrative_call_that_cannot_be_written_down_is_refused() -> None:
    unavailable = 14
    world = World(inference=True, is_full=True)
    assert world.decide(LIST_KEYS, grpc_headers(ADMIN)) == unavailable
    # Inference and nodes go on, and a denial stays one.
    assert world.decide(REST_CHAT, rest_headers(USER), rest=MODEL) == 0
    assert world.decide(ATTACH, grpc_headers(NODE)) == 0
    assert world.decide(LIST_KEYS, grpc_headers(USER)) == 7
    world.is_full = False
    world.recorder.summarise()
    assert sum(event.count for event in world.events) == 2  # the refused call and the denial


def test_a_check_that_does_not_parse_is_a_denial() -> None:
    world = World()
    world._decider.decide(None)
    assert [e.outcome for e in world.events] == ["INVALID_ARGUMENT"]


def test_the_access_of_every_rpc_is_marked_or_open_to_users_or_nodes() -> None:
    table = audit_policy.mark(access.build_table(contracts.services()), inference=False)
    admin = 1 << access_pb2.ROLE_ADMIN
    user = 1 << access_pb2.ROLE_USER
    for path, rpc in table.items():
        assert bool(rpc.audited & admin) == (path in audit_policy.JOINS or not rpc.roles & user)
