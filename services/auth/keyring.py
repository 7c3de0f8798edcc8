"""All valid keys in memory, where every call is decided."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from services.auth import secret as secrets
from services.auth.rules import Bounds, bounds_of
from services.auth.store import Key

_HASH_BYTES = 32


class Grant:
    """What a valid key stands for. A hundred thousand of them are kept, hence the slots."""

    __slots__ = ("bounds", "expires_s", "key_id", "project", "role", "tenant")

    def __init__(
        self,
        key_id: str,
        tenant: str,
        project: str,
        role: int,
        expires_s: float | None,
        bounds: Bounds | None,
    ) -> None:
        self.key_id = key_id
        self.tenant = sys.intern(tenant)
        self.project = sys.intern(project)
        self.role = role
        self.expires_s = expires_s
        self.bounds = bounds


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
        # A key's hash; two, one after the other, while a secret of before a rotation is valid.
        self._hashes: dict[str, bytes] = {}
        self._used: set[str] = set()

    def __len__(self) -> int:
        return len(self._hashes)

    def digest(self, secret: str) -> bytes:
        """Returns the hash by which the secret is stored and found."""
        return self._hasher.digest(secret)

    def find(self, secret: str) -> Grant | None:
        """Returns the grant of a secret, or None where no valid key has it."""
        if len(secret) != secrets.LENGTH:
            return None
        grant = self._grants.get(self._hasher.digest(secret))
        if grant is None:
            return None
        # Most keys do not expire: they cost no look at the clock.
        if grant.expires_s is not None and self._clock() >= grant.expires_s:
            return None
        self._used.add(grant.key_id)
        return grant

    def valid(self, key_id: str) -> Grant | None:
        """Returns the grant of a key by its id, or None where it is not valid, or not any more."""
        grant = self._grants.get(self._hashes.get(key_id, b"")[:_HASH_BYTES])
        if grant is None or (grant.expires_s is not None and self._clock() >= grant.expires_s):
            return None
        return grant

    def use(self, key_id: str) -> Grant | None:
        """Returns the same as `valid`, and takes note that the key was used."""
        grant = self.valid(key_id)
        if grant is not None:
            self._used.add(key_id)
        return grant

    def take_used(self) -> set[str]:
        """Returns the ids of the keys that were found since the last call."""
        used, self._used = self._used, set()
        return used

    def give_back_used(self, key_ids: Iterable[str]) -> None:
        """Takes ids back that could not be written down, but those of keys that are gone."""
        self._used.update(key_id for key_id in key_ids if key_id in self._hashes)

    def apply(self, keys: Iterable[Key]) -> None:
        """Brings in keys that were made, changed or revoked."""
        for key in keys:
            hashes = self._hashes.pop(key.key_id, b"")
            for old in (hashes[:_HASH_BYTES], hashes[_HASH_BYTES:]):
                grant = self._grants.get(old)
                # The hash may be another key's by now, where two have changed places.
                if grant is not None and grant.key_id == key.key_id:
                    del self._grants[old]
            if key.revoke_time is None:
                _put(key, self._grants, self._hashes)

    async def load(self, batches: AsyncIterator[Sequence[Key]]) -> None:
        """Takes these valid keys in place of all earlier ones, once the last batch is there."""
        grants: dict[bytes, Grant] = {}
        hashes: dict[str, bytes] = {}
        async for batch in batches:
            for key in batch:
                _put(key, grants, hashes)
        self._grants, self._hashes = grants, hashes


def _put(key: Key, grants: dict[bytes, Grant], hashes: dict[str, bytes]) -> None:
    expires_s = None if key.expire_time is None else key.expire_time.timestamp()
    bounds = bounds_of(key.rules)
    grants[key.secret_hash] = Grant(
        key.key_id, key.tenant, key.project, key.role, expires_s, bounds
    )
    hashes[key.key_id] = key.secret_hash
    if key.old_secret_hash and key.old_secret_expire_time is not None:
        ends_s = key.old_secret_expire_time.timestamp()
        if expires_s is not None:
            ends_s = min(ends_s, expires_s)
        grants[key.old_secret_hash] = Grant(
            key.key_id, key.tenant, key.project, key.role, ends_s, bounds
        )
        hashes[key.key_id] = key.secret_hash + key.old_secret_hash
