"""What one use does to a join token."""

from dataclasses import replace
from datetime import datetime

from services.auth import errors
from services.auth.store import Key


def use(token: Key | None, now: datetime) -> Key:
    """Returns the token with one use more.

    Raises:
        MeshError: `FAILED_PRECONDITION` when it has no use left; `INVALID_API_KEY` when it is
            gone, revoked, or past its time.
    """
    if (
        token is None
        or token.revoke_time is not None
        or token.expire_time is None
        or token.expire_time <= now
    ):
        raise errors.invalid_api_key()
    if token.max_uses and token.use_count >= token.max_uses:
        raise errors.token_spent(token.max_uses)
    return replace(token, use_count=token.use_count + 1)
