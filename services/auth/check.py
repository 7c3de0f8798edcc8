"""Serves Envoy's authorization protocol, the hottest call of the mesh."""

import asyncio
import logging
from typing import Any

import grpc
from envoy.service.auth.v3 import external_auth_pb2
from google.protobuf.message import DecodeError

from services.auth.decision import Decider

log = logging.getLogger(__name__)

SERVICE_NAME = "envoy.service.auth.v3.Authorization"


def add_to_server(decider: Decider, server: grpc.aio.Server) -> None:
    """Serves `Check`. Replies are cached as bytes, so they pass by the message serializer."""

    def check(request: Any, _: object) -> "bytes | asyncio.Future[bytes]":
        return decider.decide(request)

    handler: Any = grpc.unary_unary_rpc_method_handler(check, request_deserializer=_parse)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE_NAME, {"Check": handler}),)
    )


def _parse(data: bytes) -> Any:
    try:
        return external_auth_pb2.CheckRequest.FromString(data)
    except DecodeError as error:
        # Envoy passes on what callers wrote; text that is not UTF-8 does not parse as a string.
        log.debug("a check does not parse", extra={"error": str(error)})
        return None
