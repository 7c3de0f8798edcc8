"""Join tokens: how long they are valid, what they are good for, and the record of refused joins."""

from dataclasses import replace
from datetime import timedelta

import pytest
from google.rpc import code_pb2

from infermesh.access.v1 import access_pb2
from services.auth.decision import Decider
from services.auth.keyring import Keyring
from services.auth.keys import Keys
from services.auth.memory_store import MemoryKeyStore
from services.auth.tokens import Tokens
from services.kit.errors import MeshError
from unit.auth.auth_samples import (
    HASH_SECRET,
    LIST_KEYS,
    NOW,
    SECRETS,
    check_request,
    grpc_headers,
    make_decider,
    make_key,
    make_ring,
    read_reply,
)

ATTACH = "/infermesh.registry.v1.NodeService/AttachNode"
REDEEM = "/infermesh.auth.v1.JoinTokenService/RedeemJoinToken"


class World:
    """Tokens over a store in memory, with a clock that a test turns."""

    def __init__(self) -> None:
        self.now = NOW
        self.ring = Keyring(HASH_SECRET, clock=lambda: self.now.timestamp())
        store = MemoryKeyStore()
        self.keys = Keys(store, self.ring, lambda: self.now)
        self.tokens = Tokens(self.keys, lambda: self.now)
        self.decider: Decider = make_decider(self.ring)

    def status(self, secret: str, path: str) -> int:
        reply, _ = read_reply(self.decider.decide(check_request(path, grpc_headers(secret))))
        return int(reply.status.code)


async def test_a_token_becomes_a_key_and_expires_without_it() -> None:
    world = World()
    token, secret = await world.tokens.create("rack 1", timedelta(hours=1), 1)
    assert world.status(secret, REDEEM) == code_pb2.OK
    # It lets nobody in by itself.
    assert world.status(secret, ATTACH) == code_pb2.PERMISSION_DENIED

    key, node_secret = await world.tokens.redeem(token.key_id, "gpu-1")
    assert (key.role, key.display_name) == (access_pb2.ROLE_NODE, "node gpu-1")
    assert world.status(node_secret, ATTACH) == code_pb2.OK
    assert world.status(node_secret, REDEEM) == code_pb2.PERMISSION_DENIED

    world.now += timedelta(minutes=59, seconds=59)
    assert world.status(secret, REDEEM) == code_pb2.OK
    world.now += timedelta(seconds=1)
    assert world.status(secret, REDEEM) == code_pb2.UNAUTHENTICATED
    assert world.status(node_secret, ATTACH) == code_pb2.OK


async def test_a_revoked_token_gives_no_keys_and_takes_none_away() -> None:
    world = World()
    token, secret = await world.tokens.create("", timedelta(hours=1), 0)
    _, node_secret = await world.tokens.redeem(token.key_id, "a")
    await world.tokens.revoke(token.key_id)
    assert world.status(secret, REDEEM) == code_pb2.UNAUTHENTICATED
    assert world.status(node_secret, ATTACH) == code_pb2.OK
    with pytest.raises(MeshError) as caught:
        await world.tokens.redeem(token.key_id, "b")
    assert caught.value.reason_name == "INVALID_API_KEY"
    [listed] = await world.tokens.list_latest()
    assert (listed.key_id, listed.use_count) == (token.key_id, 1)


async def test_a_key_is_no_token() -> None:
    world = World()
    key, _ = await world.keys.create("ci", access_pb2.ROLE_USER, "")
    with pytest.raises(MeshError) as caught:
        await world.tokens.revoke(key.key_id)
    assert caught.value.reason_name == "NOT_FOUND"
    assert (await world.keys.get(key.key_id)).revoke_time is None
    assert await world.tokens.list_latest() == []


def test_a_key_that_expires_is_found_until_then() -> None:
    now = [0.0]
    ring = Keyring(HASH_SECRET, clock=lambda: now[0])
    secret = SECRETS[access_pb2.ROLE_NODE]
    key = make_key(ring, access_pb2.ROLE_NODE, secret)
    ring.apply([replace(key, expire_time=NOW)])
    now[0] = NOW.timestamp() - 0.001
    assert ring.find(secret) is not None
    now[0] = NOW.timestamp()
    assert ring.find(secret) is None


@pytest.mark.parametrize(
    ("secret", "reason", "who"),
    [
        ("im-" + "x" * 43, "INVALID_API_KEY", "im-xxxx…"),
        (SECRETS[access_pb2.ROLE_USER], "PERMISSION_DENIED", "im-uuuu…"),
    ],
)
def test_a_refused_join_is_written_down(
    caplog: pytest.LogCaptureFixture, secret: str, reason: str, who: str
) -> None:
    decider = make_decider(make_ring())
    decider.decide(check_request(ATTACH, grpc_headers(secret)))
    [record] = caplog.records
    assert record.levelname == "WARNING"
    fields = vars(record)
    assert fields["audit"] is True
    assert (fields["who"], fields["where"], fields["what"], fields["reason"]) == (
        who,
        "127.0.0.1",
        ATTACH,
        reason,
    )
    assert secret not in str(fields)


def test_other_refusals_and_good_joins_are_not(caplog: pytest.LogCaptureFixture) -> None:
    decider = make_decider(make_ring())
    decider.decide(check_request(LIST_KEYS, grpc_headers("im-" + "x" * 43)))
    decider.decide(check_request(ATTACH, grpc_headers(SECRETS[access_pb2.ROLE_NODE])))
    assert caplog.records == []
