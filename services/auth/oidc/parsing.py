"""Reads tokens to the letter, before and without any trust in them.

The form is a JWS in its compact serialization (RFC 7515, section 3.1) that holds a JWT (RFC 7519).
What two readers might read differently is refused: padding, bits that mean nothing, names that
occur twice, numbers that are none.
"""

import base64
import binascii
import json
from typing import Any, NamedTuple, NoReturn

MAX_TOKEN_CHARS = 8192
"""Longer ones are refused unread."""

_MAX_HEADER_CHARS = 2048
_MAX_KID_CHARS = 256

# Headers that change what is signed, or how it is to be understood.
_UNKNOWN_HEADERS = ("crit", "b64", "zip", "enc", "cty")

# No type is fine (RFC 7519, section 5.1); `at+jwt` is an access token (RFC 9068, section 4).
_TYPES = ("jwt", "at+jwt", "application/jwt", "application/at+jwt")


class RefusedTokenError(Exception):
    """A token is not good.

    Args:
        why: A word for logs, one of few. The caller is not told.
        is_expired: Whether it was good once, by what it says itself.
    """

    def __init__(self, why: str, *, is_expired: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.is_expired = is_expired


class Token(NamedTuple):
    """What a token says of itself; nothing of it is verified.

    Attributes:
        text: The token.
        algorithm: How it claims to be signed.
        kid: By which key; None where it does not say.
        claims: What it claims.
    """

    text: str
    algorithm: str
    kid: str | None
    claims: dict[str, Any]


def is_token(text: str) -> bool:
    """Says whether a text is meant as a token, and not as a key."""
    # What starts with `{` starts with `e` in base64; keys start with `im-`.
    return text.startswith("e") and text.count(".") > 1


def parse(text: str) -> Token:
    """Reads a token.

    Headers that say where its key is (`jku`, `x5u`, `jwk`, `x5c`) are not looked at: keys come from
    the issuer that the settings name, and from nowhere else.

    Args:
        text: ASCII, of at most `MAX_TOKEN_CHARS`.

    Raises:
        RefusedTokenError: It is malformed, or of a kind that is not understood here.
    """
    segments = text.split(".")
    if len(segments) != 3 or len(segments[0]) > _MAX_HEADER_CHARS:
        raise RefusedTokenError("malformed")
    try:
        header = _object(_decode(segments[0]))
        claims = _object(_decode(segments[1]))
        _decode(segments[2])
    except (ValueError, RecursionError):
        raise RefusedTokenError("malformed") from None
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "jwt")
    if not isinstance(algorithm, str):
        raise RefusedTokenError("algorithm")
    if any(name in header for name in _UNKNOWN_HEADERS):
        raise RefusedTokenError("header")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise RefusedTokenError("type")
    if "kid" in header and not (isinstance(kid, str) and 0 < len(kid) <= _MAX_KID_CHARS):
        raise RefusedTokenError("kid")
    return Token(text, algorithm, kid, claims)


def _decode(segment: str) -> bytes:
    data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    # The decoder lets through other characters and bits that mean nothing; one text, one token.
    if base64.urlsafe_b64encode(data).rstrip(b"=") != segment.encode("ascii"):
        raise binascii.Error("not canonical")
    return data


def _object(data: bytes) -> dict[str, Any]:
    found = json.loads(
        data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
    )
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError("no number")  # NaN, Infinity
