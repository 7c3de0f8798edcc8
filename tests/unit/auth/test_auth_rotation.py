"""Rotating and changing keys, and when they were last used; on the store in memory."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from infermesh.access.v1 import access_pb2
from infermesh.errors.v1 import errors_pb2
from services.auth.keyring import Keyring
from services.auth.keys import BOOTSTRAP_ADMIN_ID, Keys
from services.auth.last_use import LastUse
from services.auth.memory_store import MemoryKeyStore
from services.auth.rules import Rules
from services.auth.tokens import Tokens
from services.kit.errors import MeshError

HOUR = timedelta(hours=1)
ADMIN, USER, AUDITOR = access_pb2.ROLE_ADMIN, access_pb2.ROLE_USER, access_pb2.ROLE_AUDITOR


class Setup:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)
        self.ring = Keyring(b"h" * 32, lambda: self.now.timestamp())
        self.store = MemoryKeyStore()
        self.keys = Keys(self.store, self.ring, lambda: self.now)

    async def reloaded(self) -> Keyring:
        """Returns the ring of another replica."""
        other = Keyring(b"h" * 32, lambda: self.now.timestamp())
        await other.load(self.store.all())
        return other


@pytest.fixture
def setup() -> Setup:
    return Setup()


async def test_both_secrets_are_valid_until_the_overlap_is_over(setup: Setup) -> None:
    key, old = await setup.keys.create("ci", USER, "acme")
    rotated, new = await setup.keys.rotate(key.key_id, HOUR)
    assert rotated.prefix == new[:7]
    assert rotated.old_secret_expire_time == setup.now + HOUR
    for ring in (setup.ring, await setup.reloaded()):
        for secret in (old, new):
            grant = ring.find(secret)
            assert grant is not None
            assert (grant.key_id, grant.tenant) == (key.key_id, "acme")
        assert len(ring) == 1
    setup.now += HOUR
    for ring in (setup.ring, await setup.reloaded()):
        assert ring.find(old) is None
        assert ring.find(new) is not None


async def test_no_overlap_ends_the_old_secret_at_once(setup: Setup) -> None:
    key, old = await setup.keys.create("ci", USER, "")
    rotated, new = await setup.keys.rotate(key.key_id, timedelta())
    assert rotated.old_secret_expire_time is None
    assert setup.ring.find(old) is None
    assert setup.ring.find(new) is not None


async def test_a_second_rotation_ends_the_oldest_secret(setup: Setup) -> None:
    key, first = await setup.keys.create("ci", USER, "")
    _, second = await setup.keys.rotate(key.key_id, HOUR)
    _, third = await setup.keys.rotate(key.key_id, HOUR)
    found = [setup.ring.find(secret) is not None for secret in (first, second, third)]
    assert found == [False, True, True]


async def test_a_revoked_key_loses_both_secrets(setup: Setup) -> None:
    key, old = await setup.keys.create("ci", USER, "")
    _, new = await setup.keys.rotate(key.key_id, HOUR)
    await setup.keys.revoke(key.key_id)
    assert setup.ring.find(old) is None
    assert setup.ring.find(new) is None
    assert len(setup.ring) == 0


async def test_an_expiry_ends_both_secrets(setup: Setup) -> None:
    key, old = await setup.keys.create("ci", USER, "", ttl=HOUR)
    assert key.expire_time == setup.now + HOUR
    _, new = await setup.keys.rotate(key.key_id, 2 * HOUR)
    assert setup.ring.find(old) is not None
    setup.now += HOUR
    assert setup.ring.find(old) is None
    assert setup.ring.find(new) is None
    with pytest.raises(MeshError) as caught:
        await setup.keys.rotate(key.key_id, HOUR)
    assert caught.value.reason_name == "FAILED_PRECONDITION"


async def test_what_cannot_be_rotated_or_changed(setup: Setup) -> None:
    revoked, _ = await setup.keys.create("ci", USER, "")
    await setup.keys.revoke(revoked.key_id)
    token, _ = await Tokens(setup.keys).create("t", HOUR, 0)
    await setup.keys.ensure(BOOTSTRAP_ADMIN_ID, "im-" + "a" * 43, "admin", ADMIN)
    for key_id in (revoked.key_id, token.key_id, BOOTSTRAP_ADMIN_ID):
        with pytest.raises(MeshError) as caught:
            await setup.keys.rotate(key_id, HOUR)
        assert caught.value.reason_name == "FAILED_PRECONDITION"
        with pytest.raises(MeshError) as caught:
            await setup.keys.update(key_id, role=AUDITOR)
        assert caught.value.reason_name == "FAILED_PRECONDITION"
    for missing in ("key_none", "x\x00"):
        with pytest.raises(MeshError) as caught:
            await setup.keys.rotate(missing, HOUR)
        assert caught.value.reason_name == "NOT_FOUND"


async def test_an_update_changes_what_it_names_alone(setup: Setup) -> None:
    key, secret = await setup.keys.create("ci", USER, "acme", project="web")
    rules = Rules(allowed_models=("m",), labels={"team": "search"})
    await setup.keys.update(key.key_id, bound_to=rules)
    changed = await setup.keys.update(key.key_id, role=AUDITOR)
    assert (changed.rules, changed.role, changed.display_name) == (rules, AUDITOR, "ci")
    grant = setup.ring.find(secret)
    assert grant is not None
    assert (grant.role, grant.tenant, grant.project) == (AUDITOR, "acme", "web")
    renamed = await setup.keys.update(key.key_id, display_name="other", bound_to=Rules())
    assert (renamed.display_name, renamed.rules) == ("other", Rules())


async def test_the_last_admin_key_keeps_its_role(setup: Setup) -> None:
    key, _ = await setup.keys.create("root", ADMIN, "")
    # One that expires is no way in for later.
    await setup.keys.create("for a day", ADMIN, "", ttl=HOUR)
    with pytest.raises(MeshError) as caught:
        await setup.keys.update(key.key_id, role=USER)
    assert caught.value.reason_name == "FAILED_PRECONDITION"
    await setup.keys.create("another", ADMIN, "")
    assert (await setup.keys.update(key.key_id, role=USER)).role == USER


async def test_last_use_is_written_down_once_for_many_calls(setup: Setup) -> None:
    used, secret = await setup.keys.create("used", USER, "")
    idle, _ = await setup.keys.create("idle", USER, "")
    written: list[Sequence[str]] = []
    touch = setup.store.touch

    async def counted(key_ids: Sequence[str], now: datetime) -> None:
        written.append(list(key_ids))
        await touch(key_ids, now)

    setup.store.touch = counted  # type: ignore[method-assign]
    last_use = LastUse(setup.ring, setup.store, lambda: setup.now)
    for _ in range(100):
        setup.ring.find(secret)
    setup.ring.find("im-" + "x" * 43)
    await last_use.flush()
    await last_use.flush()
    assert written == [[used.key_id]]
    assert (await setup.keys.get(used.key_id)).last_use_time == setup.now
    assert (await setup.keys.get(idle.key_id)).last_use_time is None


async def test_last_use_waits_for_a_store_that_is_away(setup: Setup) -> None:
    key, secret = await setup.keys.create("used", USER, "")
    setup.ring.find(secret)
    touch = setup.store.touch

    async def away(key_ids: Sequence[str], now: datetime) -> None:
        raise MeshError(errors_pb2.ERROR_REASON_STORE_UNAVAILABLE, "away")

    setup.store.touch = away  # type: ignore[method-assign]
    last_use = LastUse(setup.ring, setup.store, lambda: setup.now)
    await last_use.flush()
    setup.store.touch = touch  # type: ignore[method-assign]
    await last_use.flush()
    assert (await setup.keys.get(key.key_id)).last_use_time == setup.now
