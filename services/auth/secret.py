"""The secrets of API keys: how they look, how they are made, what is kept of them."""

import base64
import hmac
import re
import secrets

LENGTH = 46
"""Characters of a secret: `im-` and 32 random bytes in base64url without padding."""

_GRAMMAR = re.compile(r"im-[A-Za-z0-9_-]{43}")
_PREFIX_LENGTH = 7


def make() -> str:
    """Returns a new secret with 256 random bits."""
    return "im-" + secrets.token_urlsafe(32)


KEY_ID_PREFIX = "key_"
"""What the ids of keys begin with; those of other identities do not."""


def make_key_id() -> str:
    """Returns a new key id: `key_` and 60 random bits in base32, lower case."""
    return KEY_ID_PREFIX + base64.b32encode(secrets.token_bytes(8)).decode()[:12].lower()


def is_well_formed(secret: str) -> bool:
    """Says whether a text looks like a secret."""
    return _GRAMMAR.fullmatch(secret) is not None


def prefix(secret: str) -> str:
    """Returns the part of a secret by which people tell keys apart; it may be shown."""
    return secret[:_PREFIX_LENGTH]


class Hasher:
    """Makes what is stored of a secret: HMAC-SHA256 under the mesh's own secret, 32 bytes.

    Secrets carry 256 random bits, so that a slow password hash would add cost and no strength.
    """

    def __init__(self, hash_secret: bytes) -> None:
        # Copied for each call: `hmac.digest` gives up the interpreter lock, and getting it back
        # takes several times as long as the hash.
        self._keyed = hmac.new(hash_secret, digestmod="sha256")

    def digest(self, secret: str) -> bytes:
        """Returns the hash of a secret."""
        keyed = self._keyed.copy()
        keyed.update(secret.encode())
        return keyed.digest()
