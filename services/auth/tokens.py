"""The rules of join tokens: keys that are good for nothing but a node's own key."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from infermesh.access.v1 import access_pb2
from services.auth import errors, secret
from services.auth.keys import Keys, utc_now
from services.auth.store import Key

DEFAULT_TTL = timedelta(hours=1)
_LISTED = 1000


class Tokens:
    """Makes, lists, revokes and exchanges join tokens.

    Args:
        keys: All keys; a token is one of them.
        now: The clock.
    """

    def __init__(self, keys: Keys, now: Callable[[], datetime] = utc_now) -> None:
        self._keys = keys
        self._now = now

    async def create(self, display_name: str, ttl: timedelta, max_uses: int) -> tuple[Key, str]:
        """Returns a new token and its secret, which is kept nowhere."""
        plain = secret.make()
        made = self._keys.make(
            secret.make_key_id(), plain, display_name, access_pb2.ROLE_JOIN, tenant=""
        )
        token = replace(made, expire_time=self._now() + ttl, max_uses=max_uses)
        await self._keys.add(token)
        return token, plain

    async def list_latest(self) -> Sequence[Key]:
        """Returns the latest 1000 tokens, newest first."""
        return await self._keys.latest(access_pb2.ROLE_JOIN, _LISTED)

    async def revoke(self, token_id: str) -> Key:
        """Revokes a token for good.

        Raises:
            MeshError: `NOT_FOUND`, also for a key that is no token.
        """
        if (await self._keys.get(token_id)).role != access_pb2.ROLE_JOIN:
            raise errors.token_not_found(token_id)
        return await self._keys.revoke(token_id)

    async def redeem(self, token_id: str, node_id: str) -> tuple[Key, str]:
        """Returns a new node's key and its secret, for one use of the token.

        Raises:
            MeshError: `FAILED_PRECONDITION` when no use is left; `INVALID_API_KEY` when the token
                is expired or revoked.
        """
        return await self._keys.exchange(token_id, node_id)
