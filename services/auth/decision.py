"""Decides about calls: who is it, may they, and which model. Knows no network.

Envoy asks after its transcoder, so that the path is always that of the RPC which will run.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

from services.auth import audit, errors, replies
from services.auth.access import ROLE_NAMES, Access, ModelNames
from services.auth.keyring import Keyring
from services.kit.errors import MeshError

# Filled by Envoy's `json_to_metadata`: `model` is a string, `body` is `invalid` for what it cannot
# read. To it that includes every body that is not declared as JSON, and so all of gRPC's.
_REST_NAMESPACE = "infermesh.request"

# Filled by Envoy's `grpc_field_extraction`: a list with one string for each field path.
_GRPC_NAMESPACE = "envoy.filters.http.grpc_field_extraction"
_GRPC_FIELDS = ("model", "chat.model")

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
    """

    def __init__(self, ring: Keyring, table: Mapping[str, Access], model_names: ModelNames) -> None:
        self._ring = ring
        self._table = table
        self._model_names = model_names
        self._audit = audit.JoinAudit()
        self._no_access = Access(0, names_model=False)
        # A reply depends on its arguments alone: a revoked key's stays, and is never asked for.
        self._allow = functools.lru_cache(_CACHED_REPLIES)(self._make_allow)
        # Floods of bad keys are the refusals that must stay cheap.
        self._deny_missing_key = _both(errors.missing_api_key())
        self._deny_invalid_key = _both(errors.invalid_api_key())
        self._unreadable = replies.deny(errors.unreadable_request(), for_grpc=True)

    def decide(self, request: Any) -> bytes:
        """Returns the serialized `CheckResponse` to a `CheckRequest`.

        The order is fixed: an unknown caller learns nothing of what exists, and a caller who may
        not call an RPC nothing of its arguments. None stands for a request that does not parse.
        """
        if request is None:
            return self._unreadable
        attributes = request.attributes
        http = attributes.request.http
        headers = http.headers

        secret = _find_secret(headers)
        grant = None if secret is None else self._ring.find(secret)
        if grant is None:
            if http.path in audit.PATHS:
                error = errors.missing_api_key() if secret is None else errors.invalid_api_key()
                self._audit.refused(attributes, secret, error)
            denials = self._deny_missing_key if secret is None else self._deny_invalid_key
            return denials[_is_grpc(headers)]

        role = ROLE_NAMES[grant.role]
        try:
            access = self._table.get(http.path, self._no_access)
            if not access.roles or not _reaches_an_rpc(http):
                raise _unknown_url(http)
            if not access.roles >> grant.role & 1:
                raise errors.permission_denied(role)
            model = ""
            if access.names_model:
                metadata = attributes.metadata_context.filter_metadata
                model = _typed_model(metadata) if _is_grpc(headers) else _rest_model(metadata)
            return self._allow(grant.key_id, grant.tenant, role, model)
        except MeshError as error:
            if http.path in audit.PATHS:
                self._audit.refused(attributes, secret, error)
            return replies.deny(error, for_grpc=_is_grpc(headers))

    def _make_allow(self, key_id: str, tenant: str, role: str, model: str) -> bytes:
        if model and model not in self._model_names:
            raise errors.model_not_found(model)
        return replies.allow(key_id, tenant, role, model)


def _both(error: MeshError) -> tuple[bytes, bytes]:
    return replies.deny(error, for_grpc=False), replies.deny(error, for_grpc=True)


def _find_secret(headers: Mapping[str, str]) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme == "Bearer" or scheme.lower() == "bearer":
        return credentials.strip()
    return headers.get("x-api-key")


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
