"""Serves `infermesh.auth.v1.KeyService`."""

import logging
from typing import Any

import grpc

from infermesh.auth.v1 import key_service_pb2, key_service_pb2_grpc
from services.auth.access import ROLE_NAMES
from services.auth.keys import Keys
from services.auth.store import Key
from services.kit import headers

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]


class KeyServicer(key_service_pb2_grpc.KeyServiceServicer):
    """Translates between the contract and `Keys`."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    async def CreateKey(
        self, request: key_service_pb2.CreateKeyRequest, context: _Context
    ) -> key_service_pb2.CreateKeyResponse:
        """Creates a key; the log names it, never its secret."""
        key, secret = await self._keys.create(request.display_name, request.role, request.tenant)
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


def _to_proto(key: Key) -> key_service_pb2.Key:
    message = key_service_pb2.Key(
        key_id=key.key_id,
        display_name=key.display_name,
        role=key.role,  # type: ignore[arg-type]
        tenant=key.tenant,
        prefix=key.prefix,
    )
    message.create_time.FromDatetime(key.create_time)
    if key.revoke_time is not None:
        message.revoke_time.FromDatetime(key.revoke_time)
    if key.expire_time is not None:
        message.expire_time.FromDatetime(key.expire_time)
    return message
