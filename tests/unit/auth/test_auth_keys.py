"""The rules of keys, on the store in memory."""

import base64
import hmac
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from pydantic import ValidationError

from infermesh.access.v1 import access_pb2
from services.auth import secret
from services.auth.keyring import Keyring
from services.auth.keys import Keys
from services.auth.memory_store import MemoryKeyStore
from services.auth.settings import AuthSettings
from services.kit.errors import MeshError

USER, ADMIN = access_pb2.ROLE_USER, access_pb2.ROLE_ADMIN


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


class Setup:
    """Keys over an empty store, with a clock that stands still."""

    def __init__(self) -> None:
        self.ring = Keyring(b"h" * 32)
        self.store = MemoryKeyStore()
        self.clock = Clock()
        self.keys = Keys(self.store, self.ring, self.clock)


@pytest.fixture
def setup() -> Setup:
    return Setup()


async def test_a_new_key_is_valid_at_once_and_its_secret_is_kept_nowhere(setup: Setup) -> None:
    key, plain = await setup.keys.create("ci", 0, "")
    grant = setup.ring.find(plain)
    assert grant is not None
    assert (grant.key_id, grant.tenant, grant.role) == (key.key_id, "default", USER)
    assert key.prefix == plain[:7]
    stored = await setup.keys.get(key.key_id)
    assert stored == key
    assert plain not in repr(stored)
    assert stored.secret_hash == hmac.digest(b"h" * 32, plain.encode(), "sha256")


async def test_a_revoked_key_is_refused_at_once_and_for_good(setup: Setup) -> None:
    key, plain = await setup.keys.create("ci", USER, "acme")
    revoked = await setup.keys.revoke(key.key_id)
    assert revoked.revoke_time == setup.clock.now
    assert setup.ring.find(plain) is None

    setup.clock.now += timedelta(hours=1)
    assert await setup.keys.revoke(key.key_id) == revoked


@pytest.mark.parametrize("key_id", ["key_0000", "nope", "key_\x00", "key_é", "KEY_A"])
async def test_an_unknown_key_is_not_found(setup: Setup, key_id: str) -> None:
    for call in (setup.keys.get, setup.keys.revoke):
        with pytest.raises(MeshError) as caught:
            await call(key_id)
        assert caught.value.reason_name == "NOT_FOUND"


async def test_the_last_admin_key_stays(setup: Setup) -> None:
    first, _ = await setup.keys.create("one", ADMIN, "")
    second, _ = await setup.keys.create("two", ADMIN, "")
    await setup.keys.revoke(first.key_id)
    with pytest.raises(MeshError) as caught:
        await setup.keys.revoke(second.key_id)
    assert caught.value.reason_name == "FAILED_PRECONDITION"


async def test_pages_hold_every_key_once_newest_first(setup: Setup) -> None:
    for number in range(25):
        setup.clock.now += timedelta(microseconds=number % 2)  # Some share their time.
        await setup.keys.create(f"key {number}", USER, "")
    listed, token, pages = [], "", 0
    while True:
        page, token = await setup.keys.list_page(10, token)
        listed.extend(page)
        pages += 1
        if not token:
            break
    assert pages == 3
    assert len({key.key_id for key in listed}) == 25
    assert listed == sorted(listed, key=lambda k: (k.create_time, k.key_id), reverse=True)


async def test_a_full_last_page_has_no_token(setup: Setup) -> None:
    for number in range(10):
        await setup.keys.create(f"key {number}", USER, "")
    page, token = await setup.keys.list_page(10, "")
    assert (len(page), token) == (10, "")


def forge(value: object) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(value)).decode()


@pytest.mark.parametrize(
    "token",
    [
        "nope",
        "é",
        "====",
        forge(1),
        forge([1]),
        forge([1, "x"]),
        forge([2**62, "key_a"]),
        "A" * 256,
    ],
)
async def test_a_bad_token_is_refused(setup: Setup, token: str) -> None:
    with pytest.raises(MeshError) as caught:
        await setup.keys.list_page(10, token)
    assert (caught.value.reason_name, caught.value.param) == ("INVALID_ARGUMENT", "page_token")


async def test_bootstrap_keys(setup: Setup) -> None:
    one, two = secret.make(), secret.make()
    assert await setup.keys.ensure("key_bootstrapadmin", one, "bootstrap", ADMIN)
    assert not await setup.keys.ensure("key_bootstrapadmin", one, "bootstrap", ADMIN)
    await setup.ring.load(setup.store.all())
    assert setup.ring.find(one)

    assert await setup.keys.ensure("key_bootstrapadmin", two, "bootstrap", ADMIN)
    await setup.ring.load(setup.store.all())
    assert setup.ring.find(one) is None
    assert setup.ring.find(two)


async def test_a_revoked_bootstrap_key_stays_revoked(setup: Setup) -> None:
    plain = secret.make()
    await setup.keys.ensure("key_bootstrapnode", plain, "bootstrap", access_pb2.ROLE_NODE)
    await setup.keys.revoke("key_bootstrapnode")
    assert not await setup.keys.ensure(
        "key_bootstrapnode", plain, "bootstrap", access_pb2.ROLE_NODE
    )
    await setup.ring.load(setup.store.all())
    assert setup.ring.find(plain) is None


GOOD = {"database_url": "postgresql+asyncpg://u:p@127.0.0.1:1/d", "key_hash_secret": "s" * 32}


@pytest.mark.parametrize(
    "wrong",
    [
        {"key_hash_secret": "short"},
        {"bootstrap_admin_key": "im-short"},
        {"bootstrap_admin_key": "im-" + "a" * 43, "bootstrap_node_key": "im-" + "a" * 43},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, str]) -> None:
    AuthSettings.model_validate(GOOD)
    with pytest.raises(ValidationError):
        AuthSettings.model_validate(GOOD | wrong)


def test_settings_do_not_print_secrets() -> None:
    settings = AuthSettings.model_validate(GOOD | {"bootstrap_admin_key": "im-" + "a" * 43})
    assert "ssss" not in repr(settings)
    assert "aaaa" not in repr(settings)
    assert "u:p@" not in repr(settings)
