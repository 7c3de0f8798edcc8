"""Decides about calls: who is it, may they, and which model. Knows no network.

Envoy asks after its transcoder, so that the path is always that of the RPC which will run.
"""

import asyncio
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from services.auth import errors, replies
from services.auth.access import ROLE_NAMES, Access, ModelNames
from services.auth.audit import Recorder
from services.auth.keyring import Grant, Keyring
from services.auth.limiting.contract import ScopeLimits
from services.auth.limits_gate import LimitGate
from services.auth.named_models import check_fallbacks, rest_model, typed_model
from services.auth.routes import Routes, added, is_routed
from services.auth.rules import Bounds
from services.kit.authorization import ORIGINAL_PATH, deny
from services.kit.errors import MeshError

if TYPE_CHECKING:  # Loaded only where there are issuers: it takes 10 MB.
    from services.auth.oidc.bearer import BearerTokens

_ORIGINAL_METHOD = "x-envoy-original-method"

_GRPC_TYPE = re.compile(r"application/grpc(\+proto)? *(;.*)?$", re.IGNORECASE)

_CACHED_REPLIES = 8192


class Decider:
    """Answers checks from memory.

    Args:
        ring: The valid keys.
        table: The access of each RPC by its path.
        model_names: The grammar of model names.
        recorder: Where refusals go, and the calls that the table says.
        gate: Holds calls against limits; None where nothing is limited.
        bearers: Knows the tokens of external issuers; None where there are none.
        where: Knows where calls go; None to leave that to Envoy.
        audits_bodies: Whether the audit log tells the form of inference requests.
    """

    def __init__(
        self,
        ring: Keyring,
        table: Mapping[str, Access],
        model_names: ModelNames,
        recorder: Recorder,
        gate: LimitGate | None = None,
        bearers: "BearerTokens | None" = None,
        where: Routes | None = None,
        *,
        audits_bodies: bool = False,
    ) -> None:
        self._ring = ring
        self._audits_bodies = audits_bodies
        self._bearers = bearers
        self._where = where
        # Of the few reasons why a token is refused.
        self._deny_token = functools.lru_cache(8)(_token_denials)
        self._gate = gate
        self._table = table
        self._model_names = model_names
        self._recorder = recorder
        self._no_access = Access(0, names_model=False)
        # A reply depends on its arguments alone: a revoked key's stays, and is never asked for.
        self._allow = functools.lru_cache(_CACHED_REPLIES)(self._make_allow)
        # Floods of bad keys are the refusals that must stay cheap.
        self._missing_key = errors.missing_api_key()
        self._invalid_key = errors.invalid_api_key()
        self._deny_missing_key = _both(self._missing_key)
        self._deny_invalid_key = _both(self._invalid_key)
        self._unreadable_request = errors.unreadable_request()
        self._unreadable = deny(self._unreadable_request, for_grpc=True)

    def decide(self, request: Any) -> "bytes | asyncio.Future[bytes]":
        """Returns the serialized `CheckResponse` to a `CheckRequest`; later for limited callers,
        and where an issuer is asked for the key of a token.

        The order is fixed: an unknown caller learns nothing of what exists, and a caller who may
        not call an RPC nothing of its arguments. None stands for a request that does not parse.
        """
        if request is None:
            self._recorder.denied(None, self._unreadable_request, None)
            return self._unreadable
        attributes = request.attributes
        http = attributes.request.http
        headers = http.headers

        secret = _find_secret(headers)
        grant = None if secret is None else self._ring.find(secret)
        if grant is None and secret is not None and self._bearers is not None:
            found = self._bearers.find(secret)
            if isinstance(found, asyncio.Future):
                return asyncio.ensure_future(self._decide_later(attributes, secret, found))
            if isinstance(found, MeshError):
                return self._refuse_token(attributes, secret, found)
            grant = found
        return self._decide_for(attributes, secret, grant)

    async def _decide_later(
        self, attributes: Any, secret: str, later: "asyncio.Future[Grant | MeshError | None]"
    ) -> bytes:
        found = await later
        if isinstance(found, MeshError):
            return self._refuse_token(attributes, secret, found)
        reply = self._decide_for(attributes, secret, found)
        return await reply if isinstance(reply, asyncio.Future) else reply

    def _refuse_token(self, attributes: Any, secret: str, error: MeshError) -> bytes:
        self._recorder.denied(attributes, error, secret)
        return self._deny_token(error)[_is_grpc(attributes.request.http.headers)]

    def _decide_for(
        self, attributes: Any, secret: str | None, grant: Grant | None
    ) -> "bytes | asyncio.Future[bytes]":
        headers = attributes.request.http.headers
        if grant is None:
            error = self._missing_key if secret is None else self._invalid_key
            self._recorder.denied(attributes, error, secret)
            denials = self._deny_missing_key if secret is None else self._deny_invalid_key
            return denials[_is_grpc(headers)]
        if attributes.context_extensions:
            # Envoy asks who calls before it reads a large body, and will ask again.
            return replies.KNOWN
        try:
            return self._admit(attributes, grant)
        except MeshError as error:
            identity = (grant.key_id, grant.tenant, ROLE_NAMES[grant.role])
            self._recorder.denied(attributes, error, secret, identity)
            return deny(error, for_grpc=_is_grpc(headers))

    def _admit(self, attributes: Any, grant: Grant) -> "bytes | asyncio.Future[bytes]":
        """Decides about the call of a caller who is known.

        Raises:
            MeshError: The call is refused.
        """
        http = attributes.request.http
        role = ROLE_NAMES[grant.role]
        bounds = grant.bounds
        if bounds is not None and not bounds.admit(_source(attributes)):
            raise errors.wrong_network()
        if bounds is not None and not bounds.admit_origin(http.headers.get("origin")):
            raise errors.wrong_origin()
        access = self._table.get(http.path, self._no_access)
        if not access.roles or not _reaches_an_rpc(http):
            raise _unknown_url(http)
        if not access.roles >> grant.role & 1:
            raise errors.permission_denied(role)
        model = ""
        if access.names_model:
            metadata = attributes.metadata_context.filter_metadata
            model = typed_model(metadata) if _is_grpc(http.headers) else rest_model(metadata)
            if bounds is not None and bounds.models is not None:
                check_fallbacks(metadata, bounds.models)
        reply = self.allow(grant, role, model)
        note = None
        if access.audited >> grant.role & 1:
            identity = (grant.key_id, grant.tenant, role)
            note = functools.partial(
                self._recorder.called, attributes, *identity, model, access.names_model
            )
        where = self._where if model and is_routed(http.path) else None

        def ask_where() -> "asyncio.Future[bytes | None]":
            allowed = bounds.models.text if bounds is not None and bounds.models is not None else ""
            return cast(Routes, where).ask(attributes, grant.key_id, role, model, allowed)

        gate = self._gate
        scopes: Sequence[ScopeLimits] = ()
        if model and gate is not None:
            scopes = gate.book.of(grant.tenant, grant.project, grant.key_id, model)
        if gate is None or not scopes:
            if note is not None:
                note()
            return reply if where is None else added(reply, ask_where(), None)
        # Routing is asked while Redis looks; for callers at their limits not before it has, so that
        # a flood of what is refused leaves no traces in routing.
        asked = None if where is None or gate.is_short(scopes) else ask_where()

        def go_on(admitted: bytes, release: Callable[[], None]) -> "bytes | asyncio.Future[bytes]":
            if note is not None:
                note()
            if where is None:
                return admitted
            return added(admitted, ask_where() if asked is None else asked, release)

        identity = (grant.key_id, grant.tenant, role)
        is_grpc = _is_grpc(http.headers)
        return gate.ask(attributes, identity, model, scopes, reply, is_grpc=is_grpc, go_on=go_on)

    def allow(self, grant: Grant, role: str, model: str) -> bytes:
        """Returns the answer to a call whose caller may make it.

        Raises:
            MeshError: `MODEL_NOT_FOUND`: no model has the name, or the key may not use it.
        """
        return self._allow(grant.key_id, grant.tenant, grant.project, role, model, grant.bounds)

    def _make_allow(
        self,
        key_id: str,
        tenant: str,
        project: str,
        role: str,
        model: str,
        bounds: Bounds | None,
    ) -> bytes:
        globs = None if bounds is None else bounds.models
        if model and model not in self._model_names:
            raise errors.model_not_found(model)
        if model and globs is not None and not globs.allow(model):
            raise errors.model_not_found(model)
        return replies.allow(
            key_id,
            tenant,
            role,
            model,
            # Only routing knows what else may answer, be it a fallback or the target of an alias.
            # Calls that name no model need it too: the list of models shows what the key may use.
            globs.text if globs is not None else "",
            project=project,
            guardrails="" if bounds is None else bounds.guardrails,
            caching="" if bounds is None else bounds.caching,
            audits_body=self._audits_bodies,
        )


def _both(error: MeshError) -> tuple[bytes, bytes]:
    return deny(error, for_grpc=False), deny(error, for_grpc=True)


def _token_denials(error: MeshError) -> tuple[bytes, bytes]:
    # RFC 6750, section 3: says that it is the token, and no more.
    challenge = 'Bearer error="invalid_token"'
    for_rest = deny(error, for_grpc=False, challenge=challenge)
    return for_rest, deny(error, for_grpc=True)


def _find_secret(headers: Mapping[str, str]) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme == "Bearer" or scheme.lower() == "bearer":
        return credentials.strip()
    return headers.get("x-api-key")


def _source(attributes: Any) -> str:
    # Who connects to Envoy; no header of the caller's has a part in it.
    return str(attributes.source.address.socket_address.address)


def _is_grpc(headers: Mapping[str, str]) -> bool:
    if ORIGINAL_PATH in headers:
        return False
    return headers.get("content-type", "").startswith("application/grpc")


def _reaches_an_rpc(http: Any) -> bool:
    # A service resets what is not gRPC; Envoy would take that for the service's fault.
    if ORIGINAL_PATH in http.headers:
        return True
    kind = http.headers.get("content-type", "")
    return http.method == "POST" and _GRPC_TYPE.match(kind) is not None


def _unknown_url(http: Any) -> MeshError:
    method = http.headers.get(_ORIGINAL_METHOD) or http.method
    path = http.headers.get(ORIGINAL_PATH) or http.path
    return errors.unknown_url(method, path.partition("?")[0])
