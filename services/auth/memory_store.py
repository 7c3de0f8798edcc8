"""Keys in memory, for tests and for reading the store's contract in plain code."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from infermesh.access.v1 import access_pb2
from services.auth import errors
from services.auth.store import Key, Position
from services.auth.token_use import use


class MemoryKeyStore:
    """A `KeyStore` that lives as long as the process.

    Args:
        on_change: Called with the id of each key that is written.
    """

    def __init__(self, on_change: Callable[[str], None] = lambda _: None) -> None:
        self._keys: dict[str, Key] = {}
        self._on_change = on_change

    async def add(self, key: Key) -> None:
        """See `KeyStore`."""
        if any(k.key_id == key.key_id or k.secret_hash == key.secret_hash for k in self._rows()):
            raise ValueError("the id or the hash is taken")
        self._write(key)

    async def put(self, key: Key) -> bool:
        """See `KeyStore`."""
        old = self._keys.get(key.key_id)
        if old and (old.secret_hash, old.role) == (key.secret_hash, key.role):
            return False
        self._write(key)
        return True

    async def get(self, key_ids: Iterable[str]) -> Sequence[Key]:
        """See `KeyStore`."""
        return [self._keys[key_id] for key_id in key_ids if key_id in self._keys]

    async def page(
        self, size: int, after: Position | None, role: int | None = None
    ) -> Sequence[Key]:
        """See `KeyStore`."""
        rows = [key for key in self._rows() if role is None or key.role == role]
        keys = sorted(rows, key=lambda k: (k.create_time, k.key_id), reverse=True)
        if after:
            end = (after.create_time, after.key_id)
            keys = [k for k in keys if (k.create_time, k.key_id) < end]
        return keys[:size]

    async def all(self) -> AsyncIterator[Sequence[Key]]:
        """See `KeyStore`."""
        yield [key for key in self._rows() if key.revoke_time is None]

    async def redeem(self, token_id: str, key: Key, now: datetime) -> Key:
        """See `KeyStore`."""
        used = use(self._keys.get(token_id), now)
        await self.add(key)
        self._write(used)
        return used

    async def revoke(self, key_id: str, now: datetime) -> Key:
        """See `KeyStore`."""
        key = self._keys.get(key_id)
        if key is None:
            raise errors.key_not_found(key_id)
        if key.revoke_time is not None:
            return key
        admins = [k for k in self._rows() if k.role == access_pb2.ROLE_ADMIN and not k.revoke_time]
        if admins == [key]:
            raise errors.last_admin_key(key_id)
        revoked = replace(key, revoke_time=now)
        self._write(revoked)
        return revoked

    def _rows(self) -> Sequence[Key]:
        return list(self._keys.values())

    def _write(self, key: Key) -> None:
        self._keys[key.key_id] = key
        self._on_change(key.key_id)
