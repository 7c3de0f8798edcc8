"""Serves `infermesh.auth.v1.JoinTokenService`."""

import logging
from typing import Any

import grpc

from infermesh.auth.v1 import join_token_service_pb2 as pb
from infermesh.auth.v1 import join_token_service_pb2_grpc
from services.auth.servicer import audit_fields, caller_key_id
from services.auth.store import Key
from services.auth.tokens import DEFAULT_TTL, Tokens
from services.kit.errors import MeshError

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]


class JoinTokenServicer(join_token_service_pb2_grpc.JoinTokenServiceServicer):
    """Translates between the contract and `Tokens`."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def CreateJoinToken(
        self, request: pb.CreateJoinTokenRequest, context: _Context
    ) -> pb.CreateJoinTokenResponse:
        """Creates a token; the log names it, never its secret."""
        ttl = request.ttl.ToTimedelta() if request.HasField("ttl") else DEFAULT_TTL
        token, secret = await self._tokens.create(request.display_name, ttl, request.max_uses)
        log.info("join token created", extra={"audit": True, **audit_fields(token, context)})
        return pb.CreateJoinTokenResponse(token=_to_proto(token), secret=secret)

    async def ListJoinTokens(
        self, request: pb.ListJoinTokensRequest, context: _Context
    ) -> pb.ListJoinTokensResponse:
        """Returns the latest tokens."""
        tokens = await self._tokens.list_latest()
        return pb.ListJoinTokensResponse(tokens=[_to_proto(token) for token in tokens])

    async def RevokeJoinToken(
        self, request: pb.RevokeJoinTokenRequest, context: _Context
    ) -> pb.JoinToken:
        """Revokes a token."""
        token = await self._tokens.revoke(request.token_id)
        log.info("join token revoked", extra={"audit": True, **audit_fields(token, context)})
        return _to_proto(token)

    async def RedeemJoinToken(
        self, request: pb.RedeemJoinTokenRequest, context: _Context
    ) -> pb.RedeemJoinTokenResponse:
        """Exchanges the caller's token for a node's key."""
        token_id = caller_key_id(context)
        try:
            key, secret = await self._tokens.redeem(token_id, request.node_id)
        except MeshError as error:
            # The token let the call in, so that only here it is known to be no good.
            fields = {"by_key_id": token_id, "node_id": request.node_id}
            refused = {"audit": True, "reason": error.reason_name, **fields}
            log.warning("a join was refused", extra=refused)
            raise
        fields = audit_fields(key, context) | {"node_id": request.node_id}
        log.info("join token redeemed", extra={"audit": True, **fields})
        return pb.RedeemJoinTokenResponse(key_id=key.key_id, secret=secret)


def _to_proto(token: Key) -> pb.JoinToken:
    message = pb.JoinToken(
        token_id=token.key_id,
        display_name=token.display_name,
        prefix=token.prefix,
        max_uses=token.max_uses,
        use_count=token.use_count,
    )
    message.create_time.FromDatetime(token.create_time)
    if token.expire_time is not None:
        message.expire_time.FromDatetime(token.expire_time)
    if token.revoke_time is not None:
        message.revoke_time.FromDatetime(token.revoke_time)
    return message
