"""What a store of API keys does. `tests/contract/test_auth_stores.py` states it as a suite."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from infermesh.access.v1 import access_pb2
from services.auth.rules import NONE, Rules


@dataclass(frozen=True, slots=True)
class Key:
    """An API key as it is stored: a hash stands for its secret.

    Attributes:
        role: A number of `infermesh.access.v1.Role`.
        create_time: Aware, in UTC.
        revoke_time: Aware, in UTC; None while nobody revoked it.
        expire_time: Aware, in UTC; None for a key that does not expire.
        max_uses: For a join token: how many nodes may join with it; 0 is any number.
        use_count: For a join token: how many nodes got a key for it.
        project: A project of the tenant.
        old_secret_hash: Stands for the secret of before the last rotation; empty where none is.
        old_secret_expire_time: Until when that secret is valid; aware, in UTC.
        last_use_time: When the key was last used, coarse; None for never.
        node_id: For a key that a join token was exchanged for: the node's name; else empty.
        rules: What the key is bound to.
    """

    key_id: str
    display_name: str
    role: int
    tenant: str
    prefix: str
    secret_hash: bytes
    create_time: datetime
    revoke_time: datetime | None = None
    expire_time: datetime | None = None
    max_uses: int = 0
    use_count: int = 0
    project: str = "default"
    old_secret_hash: bytes = b""
    old_secret_expire_time: datetime | None = None
    last_use_time: datetime | None = None
    node_id: str = ""
    rules: Rules = NONE


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page of keys ended: the order of lists is newest first, then by id downwards."""

    create_time: datetime
    key_id: str


def is_valid_admin(key: Key) -> bool:
    """Says whether a key may administer the mesh for as long as nobody revokes it."""
    is_admin = key.role == access_pb2.ROLE_ADMIN
    return is_admin and key.revoke_time is None and key.expire_time is None


def revoked(key: Key, now: datetime) -> Key:
    """Returns the key as it is once it is revoked; one that was revoked stays as it is."""
    return key if key.revoke_time is not None else replace(key, revoke_time=now)


class KeyStore(Protocol):
    """Keeps keys. Every method raises `MeshError` `STORE_UNAVAILABLE` when it cannot reach them.

    A write is told to all replicas once it is committed.
    """

    async def add(self, key: Key) -> None:
        """Adds a new key, and its tenant and project where they do not exist."""

    async def put(self, key: Key) -> bool:
        """Adds the key, or takes its place where one of that id has another hash or role.

        A key that stays as it is stays revoked if it was.

        Returns:
            Whether anything changed.
        """

    async def get(self, key_ids: Iterable[str]) -> Sequence[Key]:
        """Returns those of the keys that exist, in any order."""

    async def page(
        self, size: int, after: Position | None, role: int | None = None
    ) -> Sequence[Key]:
        """Returns the next keys after a position, newest first, revoked ones included.

        Args:
            size: The most keys to return.
            after: Where the page before ended.
            role: Only keys of this role; None for all.
        """

    def all(self) -> AsyncIterator[Sequence[Key]]:
        """Yields all valid keys, in batches, in any order; expired ones may be among them."""

    async def redeem(self, token_id: str, key: Key, now: datetime) -> Key:
        """Counts a use of a join token and adds the key that a node gets for it, or does neither.

        Returns:
            The token.

        Raises:
            MeshError: `FAILED_PRECONDITION` when the token has no uses left; `INVALID_API_KEY` when
                it is expired, revoked or gone.
        """

    async def change(self, key_id: str, alter: Callable[[Key], Key]) -> Key:
        """Puts what `alter` makes of a key in its place, one change of keys at a time.

        The key's id, tenant and project stay as they are. `alter` may raise to change nothing.

        Raises:
            MeshError: `NOT_FOUND`; `FAILED_PRECONDITION` where the last valid admin key would be
                one no more; what `alter` raises.
        """

    async def touch(self, key_ids: Sequence[str], now: datetime) -> None:
        """Writes down that keys were used by now. Replicas are not told."""

    async def revoke(self, key_id: str, now: datetime) -> Key:
        """Revokes a key; changes nothing on one that is revoked.

        Raises:
            MeshError: `NOT_FOUND`, or `FAILED_PRECONDITION` for the last valid admin key.
        """
