"""How the keyring takes in changes, one by one and in floods."""

import os
from dataclasses import replace

from infermesh.access.v1 import access_pb2
from services.auth.follower import FollowedKeys, Follower
from services.auth.keyring import Keyring
from services.auth.memory_store import MemoryKeyStore
from unit.auth.auth_samples import ADMIN, HASH_SECRET, NOW, USER, make_key, make_ring


def key_id(ring: Keyring, secret: str) -> str | None:
    grant = ring.find(secret)
    return grant.key_id if grant else None


def test_a_change_takes_effect_whatever_came_before() -> None:
    ring = make_ring()
    revoked = replace(make_key(ring, access_pb2.ROLE_USER), revoke_time=NOW)
    for _ in range(2):
        ring.apply([revoked])
        assert key_id(ring, USER) is None
    assert len(ring) == 2


def test_keys_that_change_places_are_both_kept() -> None:
    ring = make_ring()
    ring.apply(
        [
            make_key(ring, access_pb2.ROLE_ADMIN, secret=USER),
            make_key(ring, access_pb2.ROLE_USER, secret=ADMIN),
        ]
    )
    assert key_id(ring, USER) == "key_admin"
    assert key_id(ring, ADMIN) == "key_user"


def test_what_is_done_for_a_key_is_its_use() -> None:
    ring = make_ring()
    grant = ring.use("key_user")
    assert grant is not None and grant.key_id == "key_user"
    assert ring.take_used() == {"key_user"}
    ring.apply([replace(make_key(ring, access_pb2.ROLE_USER), revoke_time=NOW)])
    assert ring.use("key_user") is None
    assert ring.take_used() == set()


async def test_a_load_forgets_what_is_gone() -> None:
    ring = make_ring()
    await ring.load(MemoryKeyStore().all())
    assert key_id(ring, ADMIN) is None
    assert len(ring) == 0


async def test_a_flood_of_changes_is_bounded_and_none_is_missed() -> None:
    ring = Keyring(HASH_SECRET)
    store = MemoryKeyStore()
    follower = Follower("postgresql+asyncpg://u:p@127.0.0.1:1/d", [FollowedKeys(store, ring)])
    keys = [
        replace(make_key(ring, access_pb2.ROLE_USER), key_id=f"key_{n}", secret_hash=os.urandom(32))
        for n in range(1500)
    ]
    for key in keys:
        await store.put(key)
        follower._on_notification(None, 0, FollowedKeys.channel, key.key_id)
    assert len(follower._pending[FollowedKeys.channel]) == 1000
    await follower._apply_pending()
    assert len(ring) == 1500
    assert not follower._pending[FollowedKeys.channel]


async def test_single_changes_are_read_one_by_one() -> None:
    ring = Keyring(HASH_SECRET)
    store = MemoryKeyStore()
    follower = Follower("postgresql+asyncpg://u:p@127.0.0.1:1/d", [FollowedKeys(store, ring)])
    await store.put(make_key(ring, access_pb2.ROLE_USER))
    await store.put(make_key(ring, access_pb2.ROLE_ADMIN))
    follower._on_notification(None, 0, FollowedKeys.channel, "key_user")
    await follower._apply_pending()
    assert key_id(ring, USER) == "key_user"
    assert key_id(ring, ADMIN) is None
