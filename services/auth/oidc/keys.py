"""The keys by which an issuer's signatures are checked, from its JSON Web Key Set (RFC 7517)."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from services.auth.oidc.parsing import RefusedTokenError, Token

log = logging.getLogger(__name__)

MAX_KEYS = 64
_MAX_KID_CHARS = 256
_MIN_RSA_BITS, _MAX_RSA_BITS = 2048, 8192
# Checking a signature takes time with the exponent's size; 65537 is what everybody uses.
_MIN_RSA_EXPONENT, _MAX_RSA_EXPONENT = 3, 2**32

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_EC = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}

# What of a key is read. Its private half is in none of them.
_MEMBERS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

_jws = jwt.PyJWS()


class SigningKey:
    """A public key of an issuer's.

    Attributes:
        identity: Tells it from every other key.
        kid: What tokens call it; None where they do not.
        algorithms: What it is good for: never more than its kind.
        until_s: Until when it may be used, in seconds since 1970.
    """

    __slots__ = ("_key", "algorithms", "identity", "kid", "until_s")

    def __init__(
        self,
        identity: tuple[str, ...],
        kid: str | None,
        algorithms: tuple[str, ...],
        key: PublicKey,
    ) -> None:
        self.identity = identity
        self.kid = kid
        self.algorithms = algorithms
        self.until_s = 0.0
        self._key = key

    def verify(self, token: Token) -> None:
        """Checks the signature of a token whose algorithm is one of this key's.

        Raises:
            RefusedTokenError: It is not this key's.
        """
        if token.algorithm not in self.algorithms:
            raise RefusedTokenError("algorithm")
        try:
            _jws.decode_complete(token.text, self._key, [token.algorithm])
        except jwt.PyJWTError:
            raise RefusedTokenError("signature") from None


class KeySet:
    """The keys of one issuer.

    Keys that are there again after a refresh stay the same objects; those that are not are at
    their end at once, and so is what was verified by them.
    """

    def __init__(self) -> None:
        self._keys: dict[tuple[str, ...], SigningKey] = {}
        self._by_kid: dict[tuple[str | None, str], SigningKey] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, kid: str | None, algorithm: str) -> SigningKey | None:
        """Returns the key for a token, or None.

        A token that does not name its key has one if just one of the issuer's keys can be meant.
        """
        if kid is not None:
            return self._by_kid.get((kid, algorithm))
        fits = [key for key in self._keys.values() if algorithm in key.algorithms]
        return fits[0] if len(fits) == 1 else None

    def replace(self, keys: Iterable[SigningKey], until_s: float) -> None:
        """Takes the keys that the issuer has now in place of the earlier ones.

        Args:
            keys: From `read`.
            until_s: Until when they may be used unless they are confirmed, in seconds since 1970.
        """
        earlier = self._keys
        self._keys = {key.identity: earlier.pop(key.identity, key) for key in keys}
        for gone in earlier.values():
            gone.until_s = 0.0
        self._by_kid = {}
        for key in self._keys.values():
            key.until_s = until_s
            for algorithm in key.algorithms:
                # Of two keys of one name, none is meant for certain; the first stays.
                self._by_kid.setdefault((key.kid, algorithm), key)


def read(document: Mapping[str, Any], allowed: frozenset[str]) -> list[SigningKey]:
    """Returns the keys of a key set that tokens can be checked by.

    Others, such as those for encryption or of other kinds, are passed over, as RFC 7517 says
    (section 5).

    Args:
        document: The key set.
        allowed: The algorithms that the settings allow.

    Raises:
        ValueError: It is no key set, or has no key that is of use.
    """
    keys = document.get("keys")
    if not isinstance(keys, list) or len(keys) > MAX_KEYS:
        raise ValueError(f"the key set is no list of at most {MAX_KEYS} keys")
    found = []
    for each in keys:
        try:
            found.append(_read(each, allowed))
        except (ValueError, TypeError, jwt.PyJWTError) as error:
            # At each refresh, so not loudly; that nothing is left is.
            log.debug("a key is passed over", extra={"why": str(error)})
    if not found:
        raise ValueError("the key set has no key that is of use here")
    return found


def _read(jwk: Any, allowed: frozenset[str]) -> SigningKey:
    if not isinstance(jwk, dict):
        raise ValueError("no object")
    kind, kid = jwk.get("kty"), jwk.get("kid")
    if not isinstance(kind, str) or kind not in _MEMBERS:
        raise ValueError("another kind of key")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= _MAX_KID_CHARS):
        raise ValueError("no name")
    if jwk.get("use", "sig") != "sig" or "verify" not in (jwk.get("key_ops") or ["verify"]):
        raise ValueError("not for signatures")
    if "d" in jwk:
        raise ValueError("its private half is public")
    members = {name: jwk.get(name) for name in _MEMBERS[kind]}
    if not all(isinstance(value, str) for value in members.values()):
        raise ValueError("a member is missing")
    good_for = _algorithms(kind, str(members.get("crv")))
    named = jwk.get("alg")
    algorithms = tuple(a for a in good_for if a in allowed and (named is None or a == named))
    if not algorithms:
        raise ValueError("for another algorithm")
    key = jwt.PyJWK({"kty": kind, **members}, algorithms[0]).key
    _check_strength(key)
    identity = (repr(kid), kind, *map(str, members.values()), *algorithms)
    return SigningKey(identity, kid, algorithms, key)


def _algorithms(kind: str, curve: str) -> tuple[str, ...]:
    if kind == "RSA":
        return _RSA
    if kind == "EC":
        return (_EC[curve],) if curve in _EC else ()
    return ("EdDSA",) if curve == "Ed25519" else ()


def _check_strength(key: object) -> None:
    if isinstance(key, EllipticCurvePublicKey | Ed25519PublicKey):
        return
    if not isinstance(key, RSAPublicKey):
        raise ValueError("no public key")
    if not _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS:
        raise ValueError(f"an RSA key must have {_MIN_RSA_BITS} to {_MAX_RSA_BITS} bits")
    exponent = key.public_numbers().e
    if exponent % 2 == 0 or not _MIN_RSA_EXPONENT <= exponent <= _MAX_RSA_EXPONENT:
        raise ValueError("its exponent is none to use")
