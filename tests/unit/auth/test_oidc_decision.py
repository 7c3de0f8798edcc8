"""What callers with tokens are told, and what the audit log is."""

import asyncio
from typing import Any

import orjson
import pytest

from infermesh.auth.v1 import audit_service_pb2
from services.auth import access, audit_policy, contracts
from services.auth.audit import Recorder
from services.auth.decision import Decider
from unit.auth.auth_samples import (
    GRPC_CHAT,
    LIST_KEYS,
    REST_CHAT,
    USER,
    check_request,
    grpc_headers,
    make_ring,
    read_reply,
    rest_headers,
)
from unit.auth.oidc_samples import NOW, World, claims, header, private_key, ready, sign, token

MODEL = {"model": "smollm2-135m"}
ADMIN = {"realm_access": {"roles": ["mesh-admin"]}}


class Door:
    """A decider with one issuer, and what it writes down."""

    def __init__(self, world: World) -> None:
        self.events: list[audit_service_pb2.AuditEvent] = []
        table = audit_policy.mark(access.build_table(contracts.services()), inference=False)
        self._decider = Decider(
            make_ring(),
            table,
            access.ModelNames(),
            Recorder(self._append),
            bearers=world.bearers,
        )

    def _append(self, event: bytes, _: bool) -> None:
        self.events.append(audit_service_pb2.AuditEvent.FromString(event))

    async def ask(self, path: str, headers: dict[str, str]) -> tuple[Any, dict[str, str]]:
        reply = self._decider.decide(check_request(path, headers, rest=MODEL))
        return read_reply(await reply if isinstance(reply, asyncio.Future) else reply)


@pytest.fixture
async def world() -> World:
    return await ready()


async def test_a_token_passes_with_its_identity_and_goes_no_further(world: World) -> None:
    reply, headers = await Door(world).ask(REST_CHAT, rest_headers(token()))
    assert reply.status.code == 0
    assert headers == {
        "x-mesh-key-id": "oidc:acme:cp19Y4zvG0dsmtHV0nXckf",
        "x-mesh-tenant": "acme",
        "x-mesh-role": "user",
        "x-mesh-model": "smollm2-135m",
    }
    assert "authorization" in reply.ok_response.headers_to_remove


async def test_keys_work_as_before(world: World) -> None:
    reply, headers = await Door(world).ask(REST_CHAT, rest_headers(USER))
    assert reply.status.code == 0
    assert headers["x-mesh-key-id"] == "key_user"


async def test_roles_of_tokens_are_held_against_the_rpc(world: World) -> None:
    door = Door(world)
    reply, _ = await door.ask(LIST_KEYS, grpc_headers(token()))
    assert reply.status.code == 7
    assert door.events[-1].key_id == "oidc:acme:cp19Y4zvG0dsmtHV0nXckf"
    reply, _ = await door.ask(LIST_KEYS, grpc_headers(token(**ADMIN)))
    assert reply.status.code == 0
    assert door.events[-1].kind == audit_service_pb2.AUDIT_KIND_CALL
    assert door.events[-1].role == "admin"
    for path in ("NodeService/AttachNode", "NodeService/WatchMesh"):
        reply, _ = await door.ask(
            f"/infermesh.registry.v1.{path}", grpc_headers(token(role="node"))
        )
        assert reply.status.code == 7


async def test_models_of_tokens_are_held_against_the_call() -> None:
    door = Door(await ready(models_claim="models"))
    reply, headers = await door.ask(REST_CHAT, rest_headers(token(models=["smol*"])))
    assert reply.status.code == 0
    assert headers["x-mesh-allowed-models"] == "smol*"
    reply, _ = await door.ask(REST_CHAT, rest_headers(token(models=["other"])))
    assert reply.denied_response.status.code == 404


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (token(exp=NOW - 100), "The bearer token is expired."),
        (token(aud="other"), "The bearer token is not valid."),
        (token()[:-4] + "AAAA", "The bearer token is not valid."),
        ("eyJ" + "x" * 10_000 + "..", "The bearer token is not valid."),
    ],
)
async def test_a_refused_token_is_401_and_says_little(world: World, text: str, said: str) -> None:
    door = Door(world)
    reply, headers = await door.ask(REST_CHAT, rest_headers(text))
    assert reply.denied_response.status.code == 401
    error = orjson.loads(reply.denied_response.body)["error"]
    assert (error["code"], error["message"]) == ("invalid_api_key", said)
    assert headers["www-authenticate"] == 'Bearer error="invalid_token"'
    reply, headers = await door.ask(GRPC_CHAT, grpc_headers(text))
    assert (reply.status.code, headers["grpc-status"]) == (16, "16")
    assert [event.kind for event in door.events] == [audit_service_pb2.AUDIT_KIND_DENIAL] * 2
    assert {event.outcome for event in door.events} == {"INVALID_API_KEY"}
    assert {event.presented for event in door.events} == {text[:7]}
    assert all(text[8:40] not in str(event) for event in door.events)


async def test_what_is_no_token_is_refused_as_a_bad_key(world: World) -> None:
    _, headers = await Door(world).ask(REST_CHAT, rest_headers("hunter2"))
    assert headers["www-authenticate"] == "Bearer"


async def test_without_any_keys_of_the_issuer_it_is_503() -> None:
    world = World()
    world.is_away = True
    await world.issuer.refresh()
    reply, _ = await Door(world).ask(REST_CHAT, rest_headers(token()))
    assert reply.denied_response.status.code == 503
    assert reply.status.code == 14


async def test_the_answer_comes_later_where_keys_are_fetched(world: World) -> None:
    world.now += 10
    door = Door(world)
    good = sign(claims(), header("ES256", kid="later"), "ES256", private_key("ES256"))
    bad = sign(claims(), header("ES256", kid="never"), "ES256", private_key("ES256"))
    answers = [
        asyncio.ensure_future(door.ask(REST_CHAT, rest_headers(text))) for text in (good, bad)
    ]
    await asyncio.sleep(0)
    world.keys.append({**world.keys[1], "kid": "later"})
    await world.issuer.refresh()
    (passed, _), (refused, _) = await asyncio.gather(*answers)
    assert passed.status.code == 0
    assert refused.denied_response.status.code == 401
    assert len(door.events) == 1
