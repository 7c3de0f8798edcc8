"""Serves `infermesh.auth.v1.KeyCheckService`."""

from collections.abc import Mapping
from typing import Any

import grpc

from infermesh.auth.v1 import key_check_service_pb2 as pb
from infermesh.auth.v1 import key_check_service_pb2_grpc
from services.auth.access import Access
from services.auth.keyring import Keyring
from services.auth.secret import KEY_ID_PREFIX


class KeyCheckServicer(key_check_service_pb2_grpc.KeyCheckServiceServicer):
    """Says which keys may no longer make a call that they began.

    Args:
        ring: The valid keys.
        table: The access of each RPC by its path.
    """

    def __init__(self, ring: Keyring, table: Mapping[str, Access]) -> None:
        self._ring = ring
        self._table = table

    async def FindRefusedKeys(
        self, request: pb.FindRefusedKeysRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.FindRefusedKeysResponse:
        """Answers from memory."""
        access = self._table.get(request.rpc)
        roles = 0 if access is None else access.roles
        return pb.FindRefusedKeysResponse(
            key_ids=[key_id for key_id in request.key_ids if not self._may(key_id, roles)]
        )

    def _may(self, key_id: str, roles: int) -> bool:
        if not key_id.startswith(KEY_ID_PREFIX):
            # An issuer's token, which nobody here can revoke.
            return True
        grant = self._ring.valid(key_id)
        return grant is not None and bool(roles >> grant.role & 1)
