"""The rules of API keys: how they are made, listed and revoked."""

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import orjson

from infermesh.access.v1 import access_pb2
from services.auth import errors, rules, secret
from services.auth.keyring import Keyring
from services.auth.rules import Rules
from services.auth.store import Key, KeyStore, Position

BOOTSTRAP_ADMIN_ID = "key_bootstrapadmin"
BOOTSTRAP_NODE_ID = "key_bootstrapnode"
BOOTSTRAP_IDS = (BOOTSTRAP_ADMIN_ID, BOOTSTRAP_NODE_ID)
"""The keys whose secret and role come from auth's settings at each start."""

_KEY_ID = re.compile(r"key_[a-z0-9]{1,60}")
_DEFAULT_PAGE_SIZE = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def utc_now() -> datetime:
    """Returns the time, aware, in UTC."""
    return datetime.now(UTC)


class Keys:
    """Makes, lists and revokes keys. This replica decides by a change before it answers.

    Args:
        store: Where the keys are.
        ring: The keys that this replica decides by.
        now: The clock.
    """

    def __init__(
        self, store: KeyStore, ring: Keyring, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._store = store
        self._ring = ring
        self._now = now

    async def create(
        self,
        display_name: str,
        role: int,
        tenant: str,
        *,
        project: str = "",
        ttl: timedelta | None = None,
        bound_to: Rules = rules.NONE,
    ) -> tuple[Key, str]:
        """Returns a new key and its secret, which is kept nowhere.

        Args:
            display_name: A name for people.
            role: A number of `Role`; 0 for a user's.
            tenant: Whom it acts for; empty for the default tenant.
            project: The tenant's project; empty for its default one.
            ttl: How long it is valid; None for ever.
            bound_to: Its rules.

        Raises:
            MeshError: `INVALID_ARGUMENT`.
        """
        rules.check(bound_to)
        plain = secret.make()
        key = replace(
            self.make(secret.make_key_id(), plain, display_name, role, tenant),
            project=project or "default",
            expire_time=None if ttl is None else self._now() + ttl,
            rules=bound_to,
        )
        await self.add(key)
        return key, plain

    async def update(
        self,
        key_id: str,
        *,
        display_name: str | None = None,
        role: int | None = None,
        bound_to: Rules | None = None,
    ) -> Key:
        """Changes what is not None.

        Raises:
            MeshError: `NOT_FOUND`, `INVALID_ARGUMENT`, or `FAILED_PRECONDITION`: the key is
                revoked or a join token, its role is one of auth's settings, or the mesh would be
                left without an admin key.
        """
        if bound_to is not None:
            rules.check(bound_to)

        def alter(key: Key) -> Key:
            _require_alive(key)
            if role is not None and role != key.role and key_id in BOOTSTRAP_IDS:
                raise errors.precondition(f"The role of `{key_id}` is one of auth's settings.")
            return replace(
                key,
                display_name=key.display_name if display_name is None else display_name,
                role=key.role if role is None else role,
                rules=key.rules if bound_to is None else bound_to,
            )

        return await self._change(key_id, alter)

    async def rotate(self, key_id: str, overlap: timedelta) -> tuple[Key, str]:
        """Gives a key a new secret; the one until now stays valid for the overlap.

        Raises:
            MeshError: `NOT_FOUND`, or `FAILED_PRECONDITION`: the key is revoked, expired or a join
                token, or its secret is one of auth's settings.
        """
        plain = secret.make()
        now = self._now()

        def alter(key: Key) -> Key:
            _require_alive(key)
            if key.expire_time is not None and key.expire_time <= now:
                raise errors.precondition(f"The key `{key_id}` is expired.")
            if key_id in BOOTSTRAP_IDS:
                raise errors.precondition(f"The secret of `{key_id}` is one of auth's settings.")
            return replace(
                key,
                prefix=secret.prefix(plain),
                secret_hash=self._ring.digest(plain),
                old_secret_hash=key.secret_hash if overlap else b"",
                old_secret_expire_time=now + overlap if overlap else None,
            )

        return await self._change(key_id, alter), plain

    async def _change(self, key_id: str, alter: Callable[[Key], Key]) -> Key:
        async with self._ring.changing:
            key = await self._store.change(_checked(key_id), alter)
            self._ring.apply([key])
        return key

    async def add(self, key: Key) -> None:
        """Adds a key that `make` made."""
        async with self._ring.changing:
            await self._store.add(key)
            self._ring.apply([key])

    async def ensure(self, key_id: str, plain: str, display_name: str, role: int) -> bool:
        """Makes sure that a key of this id has this secret; says whether anything changed."""
        return await self._store.put(self.make(key_id, plain, display_name, role, ""))

    async def exchange(self, token_id: str, node_id: str) -> tuple[Key, str]:
        """Returns a new node's key, and its secret, for a use of a join token.

        Raises:
            MeshError: `FAILED_PRECONDITION` or `INVALID_API_KEY`, as `KeyStore.redeem` says.
        """
        plain = secret.make()
        made = self.make(
            secret.make_key_id(), plain, f"node {node_id}", access_pb2.ROLE_NODE, tenant=""
        )
        key = replace(made, node_id=node_id)
        async with self._ring.changing:
            await self._store.redeem(token_id, key, self._now())
            self._ring.apply([key])
        return key, plain

    async def get(self, key_id: str) -> Key:
        """Returns a key.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        found = await self._store.get([_checked(key_id)])
        if not found:
            raise errors.key_not_found(key_id)
        return found[0]

    async def latest(self, role: int, size: int) -> Sequence[Key]:
        """Returns the latest keys of a role, newest first."""
        return await self._store.page(size, None, role)

    async def list_page(self, size: int, token: str) -> tuple[Sequence[Key], str]:
        """Returns the next keys, newest first, and the token of the page after them.

        Raises:
            MeshError: `INVALID_ARGUMENT`, the token is not one that was returned.
        """
        size = size or _DEFAULT_PAGE_SIZE
        keys = await self._store.page(size + 1, _read_token(token) if token else None)
        if len(keys) <= size:
            return keys, ""
        return keys[:size], _write_token(keys[size - 1])

    async def revoke(self, key_id: str) -> Key:
        """Revokes a key for good.

        Raises:
            MeshError: `NOT_FOUND`, or `FAILED_PRECONDITION` for the last valid admin key.
        """
        async with self._ring.changing:
            key = await self._store.revoke(_checked(key_id), self._now())
            self._ring.apply([key])
        return key

    def make(self, key_id: str, plain: str, display_name: str, role: int, tenant: str) -> Key:
        """Returns a key with this secret, which is nowhere yet."""
        return Key(
            key_id=key_id,
            display_name=display_name,
            role=role or access_pb2.ROLE_USER,
            tenant=tenant or "default",
            prefix=secret.prefix(plain),
            secret_hash=self._ring.digest(plain),
            create_time=self._now(),
        )


def _require_alive(key: Key) -> None:
    if key.role == access_pb2.ROLE_JOIN:
        raise errors.precondition(f"`{key.key_id}` is a join token.")
    if key.revoke_time is not None:
        raise errors.precondition(f"The key `{key.key_id}` is revoked.")


def _checked(key_id: str) -> str:
    # Keeps out of the store what no id can hold, such as NUL, which PostgreSQL does not take.
    if not _KEY_ID.fullmatch(key_id):
        raise errors.key_not_found(key_id)
    return key_id


def _write_token(key: Key) -> str:
    place = [(key.create_time - _EPOCH) // _MICROSECOND, key.key_id]
    return base64.urlsafe_b64encode(orjson.dumps(place)).decode().rstrip("=")


def _read_token(token: str) -> Position:
    try:
        # The encoding that `_write_token` leaves off its padding from.
        match orjson.loads(base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)):
            case [int(micros), str(key_id)] if _KEY_ID.fullmatch(key_id):
                return Position(_EPOCH + micros * _MICROSECOND, key_id)
    except (binascii.Error, ValueError, OverflowError):
        raise errors.invalid_page_token() from None
    raise errors.invalid_page_token()
