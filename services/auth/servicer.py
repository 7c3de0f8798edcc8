"""Serves `infermesh.auth.v1.KeyService`."""

import logging
from datetime import timedelta
from typing import Any

import grpc

from infermesh.auth.v1 import key_service_pb2, key_service_pb2_grpc
from services.auth.access import ROLE_NAMES
from services.auth.keys import Keys
from services.auth.rules import NONE, Rules
from services.auth.store import Key
from services.kit import headers
from services.kit.guardrails import header

log = logging.getLogger(__name__)

_OVERLAP = timedelta(hours=1)

_Context = grpc.aio.ServicerContext[Any, Any]

# As nodes are told it, in `x-mesh-caching`.
_CACHING = {
    key_service_pb2.CACHING_UNSPECIFIED: "",
    key_service_pb2.CACHING_OFF: "off",
    key_service_pb2.CACHING_ON: "on",
}
_CACHING_OF = {word: caching for caching, word in _CACHING.items()}


class KeyServicer(key_service_pb2_grpc.KeyServiceServicer):
    """Translates between the contract and `Keys`."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def CreateKey(
        self, request: key_service_pb2.CreateKeyRequest, context: _Context
    ) -> key_service_pb2.CreateKeyResponse:
        """Creates a key; the log names it, never its secret."""
        key, secret = await self._keys.create(
            request.display_name,
            request.role,
            request.tenant,
            project=request.project,
            ttl=request.ttl.ToTimedelta() if request.HasField("ttl") else None,
            bound_to=_rules(request.rules),
        )
        log.info("key created", extra=audit_fields(key, context))
        return key_service_pb2.CreateKeyResponse(key=_to_proto(key), secret=secret)

    async def GetKey(
        self, request: key_service_pb2.GetKeyRequest, context: _Context
    ) -> key_service_pb2.Key:
        """Returns one key."""
        return _to_proto(await self._keys.get(request.key_id))

    async def ListKeys(
        self, request: key_service_pb2.ListKeysRequest, context: _Context
    ) -> key_service_pb2.ListKeysResponse:
        """Returns a page of keys."""
        keys, token = await self._keys.list_page(request.page_size, request.page_token)
        return key_service_pb2.ListKeysResponse(
            keys=[_to_proto(key) for key in keys], next_page_token=token
        )

    async def UpdateKey(
        self, request: key_service_pb2.UpdateKeyRequest, context: _Context
    ) -> key_service_pb2.Key:
        """Changes a key."""
        key = await self._keys.update(
            request.key_id,
            display_name=request.display_name if request.HasField("display_name") else None,
            role=request.role if request.HasField("role") else None,
            bound_to=_rules(request.rules) if request.HasField("rules") else None,
        )
        log.info("key changed", extra=audit_fields(key, context))
        return _to_proto(key)

    async def RotateKey(
        self, request: key_service_pb2.RotateKeyRequest, context: _Context
    ) -> key_service_pb2.RotateKeyResponse:
        """Gives a key a new secret; the log names the key, never a secret."""
        overlap = request.overlap.ToTimedelta() if request.HasField("overlap") else _OVERLAP
        key, secret = await self._keys.rotate(request.key_id, overlap)
        log.info("key rotated", extra=audit_fields(key, context))
        return key_service_pb2.RotateKeyResponse(key=_to_proto(key), secret=secret)

    async def RevokeKey(
        self, request: key_service_pb2.RevokeKeyRequest, context: _Context
    ) -> key_service_pb2.Key:
        """Revokes a key."""
        key = await self._keys.revoke(request.key_id)
        log.info("key revoked", extra=audit_fields(key, context))
        return _to_proto(key)


def caller_key_id(context: _Context) -> str:
    """Returns the id of the key with which a call came; empty for a call from inside the mesh."""
    return str(dict(context.invocation_metadata() or ()).get(headers.KEY_ID, ""))


def audit_fields(key: Key, context: _Context) -> dict[str, str]:
    """Returns what the log says of a change of a key."""
    return {
        "key_id": key.key_id,
        "role": ROLE_NAMES[key.role],
        "tenant": key.tenant,
        "by_key_id": caller_key_id(context),
    }


def _rules(message: key_service_pb2.KeyRules) -> Rules:
    return Rules(
        allowed_models=tuple(message.allowed_models),
        denied_models=tuple(message.denied_models),
        networks=tuple(message.networks),
        cors_origins=tuple(message.cors_origins),
        labels=dict(message.labels),
        guardrails=header.write(message.guardrails),
        caching=_CACHING[message.caching],
    )


def _to_proto(key: Key) -> key_service_pb2.Key:
    message = key_service_pb2.Key(
        key_id=key.key_id,
        display_name=key.display_name,
        role=key.role,  # type: ignore[arg-type]
        tenant=key.tenant,
        project=key.project,
        prefix=key.prefix,
    )
    if key.rules != NONE:
        rules = message.rules
        rules.allowed_models.extend(key.rules.allowed_models)
        rules.denied_models.extend(key.rules.denied_models)
        rules.networks.extend(key.rules.networks)
        rules.cors_origins.extend(key.rules.cors_origins)
        rules.labels.update(key.rules.labels)
        rules.caching = _CACHING_OF[key.rules.caching]
        if key.rules.guardrails:
            rules.guardrails.CopyFrom(header.read(key.rules.guardrails))
    if key.old_secret_expire_time is not None:
        message.old_secret_expire_time.FromDatetime(key.old_secret_expire_time)
    if key.last_use_time is not None:
        message.last_use_time.FromDatetime(key.last_use_time)
    message.create_time.FromDatetime(key.create_time)
    if key.revoke_time is not None:
        message.revoke_time.FromDatetime(key.revoke_time)
    if key.expire_time is not None:
        message.expire_time.FromDatetime(key.expire_time)
    return message
