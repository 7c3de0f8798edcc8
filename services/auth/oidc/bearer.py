"""Finds who a bearer token stands for.

    find ── seen before? ──────────────────────► grant        (no signature is checked)
      └─ parse ─ issuer ─ audience, times ─ key ─ signature ─ grant
                                             └─ unknown: the issuer's keys are fetched, once

What costs little is looked at first; nothing is believed before the signature is checked.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from infermesh.errors.v1 import errors_pb2
from services.auth.keyring import Grant
from services.auth.oidc import claims
from services.auth.oidc.issuer import Issuer
from services.auth.oidc.keys import SigningKey
from services.auth.oidc.parsing import MAX_TOKEN_CHARS, RefusedTokenError, Token, is_token, parse
from services.kit.errors import MeshError

log = logging.getLogger(__name__)

MAX_CACHED = 10_000
_LOG_INTERVAL_S = 60.0

Found = Grant | MeshError | None
"""Whom a text stands for, or why it does not; None for what is no token."""


class _Seen(NamedTuple):
    grant: Grant
    until_s: float
    key: SigningKey


class BearerTokens:
    """Checks tokens of the issuers that the settings name.

    Args:
        issuers: The issuers.
        adopt: Is told the tenant and project of each token that is verified.
        clock: The time in seconds since 1970.
    """

    def __init__(
        self,
        issuers: Iterable[Issuer],
        adopt: Callable[[str, str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issuers = {each.settings.issuer: each for each in issuers}
        self._adopt = adopt
        self._clock = clock
        self._seen: OrderedDict[bytes, _Seen] = OrderedDict()
        self._next_log: dict[tuple[str, str], float] = {}
        self._invalid = MeshError(
            errors_pb2.ERROR_REASON_INVALID_API_KEY, "The bearer token is not valid."
        )
        self._expired = MeshError(
            errors_pb2.ERROR_REASON_INVALID_API_KEY, "The bearer token is expired."
        )
        self._unknown_keys = MeshError(
            errors_pb2.ERROR_REASON_SERVICE_UNAVAILABLE,
            "The keys of the token's issuer are not known at this time.",
        )

    def find(self, text: str) -> Found | asyncio.Future[Found]:
        """Returns whom a text stands for; a future of it where keys are fetched first.

        Args:
            text: What a caller presents, of any size and content.
        """
        if not is_token(text) or not text.isascii():
            return None
        if len(text) > MAX_TOKEN_CHARS:
            return self._refuse("", RefusedTokenError("too_long"))
        digest = hashlib.sha256(text.encode()).digest()
        seen = self._seen.get(digest)
        if seen is not None:
            now = self._clock()
            if now < seen.until_s and now < seen.key.until_s:
                self._seen.move_to_end(digest)
                return seen.grant
            del self._seen[digest]
        return self._verify(text, digest, may_ask=True)

    def _verify(self, text: str, digest: bytes, *, may_ask: bool) -> Found | asyncio.Future[Found]:
        name = ""
        try:
            token = parse(text)
            issuer = self._issuer(token)
            name = issuer.settings.name
            if token.algorithm not in issuer.settings.algorithms:
                raise RefusedTokenError("algorithm")
            until_s = claims.check(token.claims, issuer.settings, self._clock())
            key = issuer.find(token.kid, token.algorithm)
            if key is None:
                if may_ask and issuer.can_ask():
                    return asyncio.ensure_future(self._verify_later(issuer.ask(), text, digest))
                if not issuer.is_known():
                    return self._unknown_keys
                raise RefusedTokenError("unknown_key")
            key.verify(token)
            grant = claims.grant(token.claims, issuer.settings, until_s)
        except RefusedTokenError as error:
            return self._refuse(name, error)
        self._seen[digest] = _Seen(grant, until_s, key)
        if len(self._seen) > MAX_CACHED:
            self._seen.popitem(last=False)
        self._adopt(grant.tenant, grant.project)
        return grant

    async def _verify_later(self, asked: "asyncio.Task[None]", text: str, digest: bytes) -> Found:
        await asked
        found = self._verify(text, digest, may_ask=False)
        assert not isinstance(found, asyncio.Future)  # noqa: S101 - it may not ask again
        return found

    def _issuer(self, token: Token) -> Issuer:
        named = token.claims.get("iss")
        issuer = self._issuers.get(named) if isinstance(named, str) else None
        if issuer is None:
            raise RefusedTokenError("issuer")
        return issuer

    def _refuse(self, issuer: str, error: RefusedTokenError) -> MeshError:
        # Now and then, so that whoever sets up an issuer learns why it does not work. The reasons
        # are few, so that what is kept of them is bounded.
        now = self._clock()
        if now >= self._next_log.get((issuer, error.why), 0.0):
            self._next_log[issuer, error.why] = now + _LOG_INTERVAL_S
            log.info("a bearer token is refused", extra={"issuer": issuer, "why": error.why})
        return self._expired if error.is_expired else self._invalid
