"""All valid keys in memory, where every call is decided."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from services.auth import secret as secrets
from services.auth.store import Key


class Grant:
    """What a valid key stands for. A hundred thousand of them are kept, hence the slots."""

    __slots__ = ("expires_s", "key_id", "role", "tenant")

    def __init__(self, key_id: str, tenant: str, role: int, expires_s: float | None) -> None:
        self.key_id = key_id
        self.tenant = tenant
        self.role = role
        self.expires_s = expires_s


class Keyring:
    """Finds the grant of a secret without asking the store.

    Args:
        hash_secret: Keys the hashes.
        clock: The time in seconds since 1970.

    Attributes:
        changing: Held from the reading of the store to the change of the ring that follows, so
            that what was read earlier never takes the place of what was read later.
    """

    def __init__(self, hash_secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.changing = asyncio.Lock()
        self._hasher = secrets.Hasher(hash_secret)
        self._grants: dict[bytes, Grant] = {}
        self._hashes: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._grants)

    def digest(self, secret: str) -> bytes:
        """Returns the hash by which the secret is stored and found."""
        return self._hasher.digest(secret)

    def find(self, secret: str) -> Grant | None:
        """Returns the grant of a secret, or None where no valid key has it."""
        if len(secret) != secrets.LENGTH:
            return None
        grant = self._grants.get(self._hasher.digest(secret))
        # Most keys do not expire: they cost no look at the clock.
        if grant is None or grant.expires_s is None or self._clock() < grant.expires_s:
            return grant
        return None

    def apply(self, keys: Iterable[Key]) -> None:
        """Brings in keys that were made, changed or revoked."""
        for key in keys:
            old = self._hashes.pop(key.key_id, b"")
            grant = self._grants.get(old)
            # The hash may be another key's by now, where two have changed places.
            if grant is not None and grant.key_id == key.key_id:
                del self._grants[old]
            if key.revoke_time is None:
                self._grants[key.secret_hash] = _grant(key)
                self._hashes[key.key_id] = key.secret_hash

    async def load(self, batches: AsyncIterator[Sequence[Key]]) -> None:
        """Takes these valid keys in place of all earlier ones, once the last batch is there."""
        grants: dict[bytes, Grant] = {}
        hashes: dict[str, bytes] = {}
        async for batch in batches:
            for key in batch:
                grants[key.secret_hash] = _grant(key)
                hashes[key.key_id] = key.secret_hash
        self._grants, self._hashes = grants, hashes


def _grant(key: Key) -> Grant:
    expires_s = None if key.expire_time is None else key.expire_time.timestamp()
    return Grant(key.key_id, key.tenant, key.role, expires_s)
