"""An issuer in memory, and tokens of any shape."""

import base64
import functools
import json
from collections.abc import Mapping
from typing import Any

from jwt.algorithms import get_default_algorithms

from oidc_issuer import make_private_key, public_jwk
from services.auth.keyring import Grant
from services.auth.oidc.bearer import BearerTokens
from services.auth.oidc.config import IssuerSettings
from services.auth.oidc.fetching import Document, FetchError
from services.auth.oidc.issuer import Issuer
from services.kit.errors import MeshError

URL = "https://issuer.example"
NOW = 1_800_000_000.0
ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)

SETTINGS: Mapping[str, Any] = {
    "name": "acme",
    "issuer": URL,
    "audience": "infermesh",
    "tenant_claim": "tenant",
    "role_claim": "realm_access.roles",
    "roles": {"mesh-admin": "admin", "mesh-ops": "operator", "mesh-read": "auditor"},
    "default_role": "user",
}


_made_once = functools.cache(make_private_key)


def kind_of(algorithm: str) -> str:
    """Returns the name of the issuer's key for an algorithm."""
    return "RS256" if algorithm[:2] in ("RS", "PS") else algorithm


def private_key(algorithm: str) -> Any:
    """Returns the issuer's key for an algorithm."""
    return _made_once(kind_of(algorithm))


def settings(**fields: Any) -> IssuerSettings:
    return IssuerSettings.model_validate({**SETTINGS, **fields})


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def written(content: Any) -> bytes:
    """Returns JSON; bytes and text as they are."""
    if isinstance(content, bytes):
        return content
    return (content if isinstance(content, str) else json.dumps(content)).encode()


def sign(claims: Any, header: Any, algorithm: str, key: Any) -> str:
    """Returns a token whose header and claims may be anything."""
    signed = f"{encode(written(header))}.{encode(written(claims))}"
    signature = get_default_algorithms()[algorithm].sign(signed.encode(), key)
    return f"{signed}.{encode(signature)}"


def claims(**changed: Any) -> dict[str, Any]:
    """Returns good claims with changes; None takes one away."""
    good = {
        "iss": URL,
        "aud": "infermesh",
        "sub": "somebody",
        "tenant": "acme",
        "iat": NOW - 10,
        "exp": NOW + 300,
    }
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def header(algorithm: str, **changed: Any) -> dict[str, Any]:
    good = {"alg": algorithm, "typ": "JWT", "kid": kind_of(algorithm)}
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def token(algorithm: str = "ES256", /, **changed: Any) -> str:
    """Returns a token of the issuer's with changed claims."""
    return sign(claims(**changed), header(algorithm), algorithm, private_key(algorithm))


class World:
    """One issuer, whose keys and whose clock the test sets."""

    def __init__(self, **fields: Any) -> None:
        self.now = NOW
        self.keys = [
            public_jwk(private_key(kind), kind)
            for kind in ("RS256", "ES256", "ES384", "ES512", "EdDSA")
        ]
        self.max_age_s: int | None = None
        self.is_away = False
        self.fetched = 0
        self.adopted: list[tuple[str, str]] = []
        self.issuer = Issuer(settings(**fields), self.fetch, lambda: self.now, lambda: self.now)
        self.bearers = BearerTokens(
            [self.issuer], lambda *pair: self.adopted.append(pair), lambda: self.now
        )

    async def fetch(self) -> Document:
        self.fetched += 1
        if self.is_away:
            raise FetchError("away")
        return Document({"keys": self.keys}, self.max_age_s)

    def find(self, text: str) -> Grant | MeshError | None:
        """Returns who a token is; fails where keys would be fetched for it."""
        found = self.bearers.find(text)
        assert found is None or isinstance(found, Grant | MeshError)
        return found


async def ready(**fields: Any) -> World:
    """Returns a world whose keys were fetched, long enough ago to be fetched again."""
    world = World(**fields)
    await world.issuer.refresh()
    return world
