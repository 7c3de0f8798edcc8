"""Keys in memory, for tests and for reading the store's contract in plain code."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from services.auth import errors
from services.auth.store import Key, Position, is_valid_admin, revoked
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

    async def change(self, key_id: str, alter: Callable[[Key], Key]) -> Key:
        """See `KeyStore`."""
        key = self._keys.get(key_id)
        if key is None:
            raise errors.key_not_found(key_id)
        altered = alter(key)
        if altered == key:
            return key
        others = [other for other in self._rows() if other is not key and is_valid_admin(other)]
        if is_valid_admin(key) and not is_valid_admin(altered) and not others:
            raise errors.last_admin_key(key_id)
        self._write(altered)
        return altered

    async def touch(self, key_ids: Sequence[str], now: datetime) -> None:
        """See `KeyStore`."""
        for key in await self.get(key_ids):
            self._keys[key.key_id] = replace(key, last_use_time=now)

    async def revoke(self, key_id: str, now: datetime) -> Key:
        """See `KeyStore`."""
        return await self.change(key_id, lambda key: revoked(key, now))

    def _rows(self) -> Sequence[Key]:
        return list(self._keys.values())

    def _write(self, key: Key) -> None:
        self._keys[key.key_id] = key
        self._on_change(key.key_id)
