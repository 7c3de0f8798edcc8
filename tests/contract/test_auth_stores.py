"""What every store of keys must do, run on each of them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from infermesh.access.v1 import access_pb2
from services.auth.memory_store import MemoryKeyStore
from services.auth.postgres_store import PostgresKeyStore, metadata
from services.auth.rules import Rules
from services.auth.store import Key, KeyStore, Position
from services.kit.database import create_tables, make_engine
from services.kit.errors import MeshError

NOW = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
USER, ADMIN = access_pb2.ROLE_USER, access_pb2.ROLE_ADMIN


def make_key(number: int, role: int = USER, after_s: float = 0) -> Key:
    return Key(
        key_id=f"key_{number:04}",
        display_name=f"Schlüssel {number}",
        role=role,
        tenant="acme",
        prefix="im-abcd",
        secret_hash=bytes([number]) * 32,
        create_time=NOW + timedelta(seconds=after_s),
    )


@pytest.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[KeyStore]:
    if request.param == "memory":
        yield MemoryKeyStore()
        return
    engine = make_engine(request.getfixturevalue("postgres_url"))
    await create_tables(engine, metadata)
    async with engine.begin() as connection:
        await connection.execute(sa.text("TRUNCATE auth.api_keys"))
    yield PostgresKeyStore(engine)
    await engine.dispose()


async def all_keys(store: KeyStore) -> list[Key]:
    return [key async for batch in store.all() for key in batch]


async def test_keys_come_back_as_they_went_in(store: KeyStore) -> None:
    await store.add(make_key(1))
    assert await store.get(["key_0001", "key_0002"]) == [make_key(1)]
    assert await store.get([]) == []


async def test_rules_come_back_as_they_went_in(store: KeyStore) -> None:
    rules = Rules(("m*",), ("x",), ("10.0.0.0/8",), ("https://a.b",), {"team": "a"}, "EgV6ZWJyYQ==")
    bound = replace(make_key(1), rules=rules)
    await store.add(bound)
    assert await store.get(["key_0001"]) == [bound]


async def test_neither_ids_nor_hashes_are_taken_twice(store: KeyStore) -> None:
    await store.add(make_key(1))
    for twin in (
        replace(make_key(2), key_id="key_0001"),
        replace(make_key(2), secret_hash=make_key(1).secret_hash),
    ):
        with pytest.raises((ValueError, sa.exc.IntegrityError)):
            await store.add(twin)
    assert await all_keys(store) == [make_key(1)]


async def test_put_replaces_only_what_differs(store: KeyStore) -> None:
    assert await store.put(make_key(1))
    assert not await store.put(replace(make_key(1), create_time=NOW + timedelta(days=1)))
    assert await store.get(["key_0001"]) == [make_key(1)]

    await store.revoke("key_0001", NOW)
    assert not await store.put(make_key(1))
    assert await all_keys(store) == []

    changed = replace(make_key(1), secret_hash=b"x" * 32)
    assert await store.put(changed)
    assert await all_keys(store) == [changed]


async def test_revoked_keys_are_listed_but_not_loaded(store: KeyStore) -> None:
    await store.add(make_key(1))
    revoked = await store.revoke("key_0001", NOW)
    assert revoked == replace(make_key(1), revoke_time=NOW)
    assert await store.revoke("key_0001", NOW + timedelta(days=1)) == revoked
    assert await store.page(10, None) == [revoked]
    assert await all_keys(store) == []


async def test_an_unknown_key_cannot_be_revoked(store: KeyStore) -> None:
    with pytest.raises(MeshError) as caught:
        await store.revoke("key_0001", NOW)
    assert caught.value.reason_name == "NOT_FOUND"


async def test_the_last_valid_admin_key_cannot_be_revoked(store: KeyStore) -> None:
    for number in (1, 2):
        await store.add(make_key(number, ADMIN))
    await store.add(make_key(3))
    await store.revoke("key_0001", NOW)
    with pytest.raises(MeshError) as caught:
        await store.revoke("key_0002", NOW)
    assert caught.value.reason_name == "FAILED_PRECONDITION"
    await store.revoke("key_0003", NOW)
    await store.revoke("key_0001", NOW)


async def test_pages_are_newest_first_then_by_id(store: KeyStore) -> None:
    for number, after_s in ((1, 0), (2, 5), (3, 5), (4, 1)):
        await store.add(make_key(number, after_s=after_s))
    first = await store.page(2, None)
    assert [key.key_id for key in first] == ["key_0003", "key_0002"]
    rest = await store.page(9, Position(first[-1].create_time, first[-1].key_id))
    assert [key.key_id for key in rest] == ["key_0004", "key_0001"]


def make_token(number: int, max_uses: int) -> Key:
    expires = NOW + timedelta(hours=1)
    token = make_key(number, access_pb2.ROLE_JOIN)
    return replace(token, expire_time=expires, max_uses=max_uses)


async def test_a_token_is_redeemed_as_often_as_it_says(store: KeyStore) -> None:
    await store.add(make_token(1, max_uses=2))
    for number in (2, 3):
        used = await store.redeem("key_0001", make_key(number), NOW)
        assert used.use_count == number - 1
    with pytest.raises(MeshError) as caught:
        await store.redeem("key_0001", make_key(4), NOW)
    assert caught.value.reason_name == "FAILED_PRECONDITION"
    assert await store.get(["key_0004"]) == []
    [token] = await store.get(["key_0001"])
    assert token == replace(make_token(1, 2), use_count=2)
    assert await store.page(9, None, access_pb2.ROLE_JOIN) == [token]


async def test_of_two_that_redeem_the_last_use_one_gets_it(store: KeyStore) -> None:
    await store.add(make_token(1, max_uses=1))
    outcomes = await asyncio.gather(
        *(store.redeem("key_0001", make_key(number), NOW) for number in (2, 3)),
        return_exceptions=True,
    )
    assert sorted(isinstance(outcome, MeshError) for outcome in outcomes) == [False, True]
    assert len(await store.get(["key_0002", "key_0003"])) == 1


async def test_only_a_valid_token_is_redeemed(store: KeyStore) -> None:
    await store.add(make_token(1, max_uses=0))
    await store.add(make_key(2))
    late = NOW + timedelta(hours=1)
    for token_id, now in (("key_0001", late), ("key_0002", NOW), ("key_none", NOW)):
        with pytest.raises(MeshError) as caught:
            await store.redeem(token_id, make_key(9), now)
        assert caught.value.reason_name == "INVALID_API_KEY"
    await store.revoke("key_0001", NOW)
    with pytest.raises(MeshError) as caught:
        await store.redeem("key_0001", make_key(9), NOW)
    assert caught.value.reason_name == "INVALID_API_KEY"


async def test_a_table_of_an_earlier_version_gets_its_new_columns(postgres_url: str) -> None:
    engine = make_engine(postgres_url)
    await create_tables(engine, metadata)
    async with engine.begin() as connection:
        await connection.execute(sa.text("TRUNCATE auth.api_keys"))
    store = PostgresKeyStore(engine)
    await store.add(make_key(1))
    columns = ("expire_time", "max_uses", "use_count")
    async with engine.begin() as connection:
        for column in columns:
            await connection.execute(sa.text(f"ALTER TABLE auth.api_keys DROP COLUMN {column}"))
    await create_tables(engine, metadata)
    assert await all_keys(store) == [make_key(1)]
    await engine.dispose()
