"""Decides about calls: who is it, may they, and which model. Knows no network.

Envoy asks after its transcoder, so that the path is always that of the RPC which will run.
"""

import binascii
import functools
import re
from collections.abc import Mapping
from typing import Any

import orjson

from services.auth import errors, replies
from services.auth.access import ROLE_NAMES, Access, ModelNames
from services.auth.audit import Recorder
from services.auth.keyring import Grant, Keyring
from services.kit.errors import MeshError
from services.kit.globs import ModelGlobs

# Filled by Envoy's `json_to_metadata`: `model` is a string, `body` is `invalid` for what it cannot
# read. To it that includes every body that is not declared as JSON, and so all of gRPC's.
_REST_NAMESPACE = "infermesh.request"

# Filled by Envoy's `grpc_field_extraction`: a list with one string for each field path.
_GRPC_NAMESPACE = "envoy.filters.http.grpc_field_extraction"
_GRPC_FIELDS = ("model", "chat.model")

_GRPC_FALLBACKS = ("fallback_models", "chat.fallback_models")

# Filled by Envoy's Lua: `models` is the caller's list as it stands in the body, in base64.
_REST_FALLBACKS = "infermesh.fallbacks"

# The transcoder's mark: only calls that came as REST carry it.
_ORIGINAL_PATH = "x-envoy-original-path"
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
    """

    def __init__(
        self,
        ring: Keyring,
        table: Mapping[str, Access],
        model_names: ModelNames,
        recorder: Recorder,
    ) -> None:
        self._ring = ring
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
        self._unreadable = replies.deny(self._unreadable_request, for_grpc=True)

    def decide(self, request: Any) -> bytes:
        """Returns the serialized `CheckResponse` to a `CheckRequest`.

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
        if grant is None:
            error = self._missing_key if secret is None else self._invalid_key
            self._recorder.denied(attributes, error, secret)
            denials = self._deny_missing_key if secret is None else self._deny_invalid_key
            return denials[_is_grpc(headers)]
        try:
            return self._admit(attributes, grant)
        except MeshError as error:
            identity = (grant.key_id, grant.tenant, ROLE_NAMES[grant.role])
            self._recorder.denied(attributes, error, secret, identity)
            return replies.deny(error, for_grpc=_is_grpc(headers))

    def _admit(self, attributes: Any, grant: Grant) -> bytes:
        """Decides about the call of a caller who is known.

        Raises:
            MeshError: The call is refused.
        """
        http = attributes.request.http
        role = ROLE_NAMES[grant.role]
        bounds = grant.bounds
        if bounds is not None and not bounds.admit(_source(attributes)):
            raise errors.wrong_network()
        access = self._table.get(http.path, self._no_access)
        if not access.roles or not _reaches_an_rpc(http):
            raise _unknown_url(http)
        if not access.roles >> grant.role & 1:
            raise errors.permission_denied(role)
        model = ""
        if access.names_model:
            metadata = attributes.metadata_context.filter_metadata
            model = _typed_model(metadata) if _is_grpc(http.headers) else _rest_model(metadata)
            if bounds is not None and bounds.models is not None:
                _check_fallbacks(metadata, bounds.models)
        globs = None if bounds is None else bounds.models
        reply = self._allow(grant.key_id, grant.tenant, role, model, globs)
        if access.audited >> grant.role & 1:
            identity = (grant.key_id, grant.tenant, role)
            self._recorder.called(attributes, *identity, model, access.names_model)
        return reply

    def _make_allow(
        self, key_id: str, tenant: str, role: str, model: str, globs: ModelGlobs | None
    ) -> bytes:
        if model and model not in self._model_names:
            raise errors.model_not_found(model)
        if not model or globs is None:
            return replies.allow(key_id, tenant, role, model)
        if not globs.allow(model):
            raise errors.model_not_found(model)
        # Only routing knows what else may answer, be it a fallback or the target of an alias.
        return replies.allow(key_id, tenant, role, model, globs.text)


def _both(error: MeshError) -> tuple[bytes, bytes]:
    return replies.deny(error, for_grpc=False), replies.deny(error, for_grpc=True)


def _find_secret(headers: Mapping[str, str]) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme == "Bearer" or scheme.lower() == "bearer":
        return credentials.strip()
    return headers.get("x-api-key")


def _source(attributes: Any) -> str:
    # Who connects to Envoy; no header of the caller's has a part in it.
    return str(attributes.source.address.socket_address.address)


def _is_grpc(headers: Mapping[str, str]) -> bool:
    if _ORIGINAL_PATH in headers:
        return False
    return headers.get("content-type", "").startswith("application/grpc")


def _reaches_an_rpc(http: Any) -> bool:
    # A service resets what is not gRPC; Envoy would take that for the service's fault.
    if _ORIGINAL_PATH in http.headers:
        return True
    kind = http.headers.get("content-type", "")
    return http.method == "POST" and _GRPC_TYPE.match(kind) is not None


def _unknown_url(http: Any) -> MeshError:
    method = http.headers.get(_ORIGINAL_METHOD) or http.method
    path = http.headers.get(_ORIGINAL_PATH) or http.path
    return errors.unknown_url(method, path.partition("?")[0])


def _rest_model(metadata: Mapping[str, Any]) -> str:
    found = metadata.get(_REST_NAMESPACE)
    if found is not None:
        body = found.fields.get("body")
        if body is not None and body.string_value == "invalid":
            raise errors.invalid_json()
        model = found.fields.get("model")
        if model is not None and model.string_value:
            return str(model.string_value)
    raise errors.missing_model()


def _check_fallbacks(metadata: Mapping[str, Any], globs: ModelGlobs) -> None:
    # Refused as a whole, so that the caller learns of it. Routing passes over what is not seen
    # here, such as a list in the middle of a long body.
    names: list[Any] = []
    if (found := metadata.get(_REST_FALLBACKS)) is not None:
        try:
            said = orjson.loads(binascii.a2b_base64(found.fields["models"].string_value))
        except ValueError:
            said = ()  # The node says what is wrong with it.
        names.extend(said if isinstance(said, list) else ())
    if (found := metadata.get(_GRPC_NAMESPACE)) is not None:
        for field in _GRPC_FALLBACKS:
            if field in found.fields:
                names.extend(each.string_value for each in found.fields[field].list_value.values)
    for name in names:
        if isinstance(name, str) and name and not globs.allow(name):
            raise errors.model_not_found(name, "fallback_models")


def _typed_model(metadata: Mapping[str, Any]) -> str:
    found = metadata.get(_GRPC_NAMESPACE)
    if found is not None:
        for name in _GRPC_FIELDS:
            model = found.fields.get(name)
            if model is not None and model.list_value.values:
                value = model.list_value.values[0].string_value
                if value:
                    return str(value)
    raise errors.missing_model()
