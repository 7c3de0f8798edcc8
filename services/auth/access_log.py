"""Hears from Envoy how calls ended that have a reservation.

Envoy's protocol: https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/service/accesslog/v3/als.proto

Entries are lost while auth is away: what is not heard of here is settled by the ledger, or expires.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
from envoy.service.accesslog.v3 import als_pb2

from services.auth.limiting.contract import Limiter

log = logging.getLogger(__name__)

SERVICE_NAME = "envoy.service.accesslog.v3.AccessLogService"

# The statuses by which a node refuses before its engine works, for gRPC callers and for the others:
# the form of the call, a model that is not there, a full queue, a node that drains or whose engine
# cannot be reached. What an engine refuses itself it has not worked on either.
_REFUSED = frozenset({"3", "5", "7", "8", "9", "12", "14", "16"})
_REFUSED_HTTP = frozenset({400, 401, 403, 404, 409, 413, 415, 422, 429, 503})

# CANCELLED and DEADLINE_EXCEEDED: a gRPC caller says how long a node may work.
_LEFT = frozenset({"1", "4"})


def add_to_server(limiter: Limiter, stopping: asyncio.Event, server: grpc.aio.Server) -> None:
    """Serves Envoy's access log.

    Args:
        limiter: Told of the end of each call.
        stopping: Set when the process is told to stop: Envoy's streams would last forever.
        server: The server.
    """

    async def stream(requests: AsyncIterator[Any], _: object) -> Any:
        reader = asyncio.ensure_future(_read(requests, limiter))
        stop = asyncio.ensure_future(stopping.wait())
        try:
            await asyncio.wait((reader, stop), return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
        finally:
            reader.cancel()
            stop.cancel()
        return als_pb2.StreamAccessLogsResponse()

    handler: Any = grpc.stream_unary_rpc_method_handler(
        stream,
        request_deserializer=als_pb2.StreamAccessLogsMessage.FromString,
        response_serializer=als_pb2.StreamAccessLogsResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE_NAME, {"StreamAccessLogs": handler}),)
    )


async def _read(requests: AsyncIterator[Any], limiter: Limiter) -> None:
    async for message in requests:
        for entry in message.http_logs.log_entry:
            request_id = entry.request.request_id
            if request_id:
                limiter.release(
                    request_id, reached_node=reached_engine(entry), caller_left=caller_left(entry)
                )


def reached_engine(entry: Any) -> bool:
    """Says whether an engine may have worked on a call; where it is not certain, it may have."""
    common = entry.common_properties
    if not common.HasField("upstream_remote_address"):
        return False  # Refused after auth let it pass: by routing, or for want of a node.
    if common.response_flags.upstream_connection_failure:
        # The last of several tries; an earlier one may have come further.
        return bool(common.upstream_request_attempt_count > 1)
    response = entry.response
    if response.response_code_details != "via_upstream":
        return True  # The caller left, or the node did, in the middle.
    # In the headers: then nothing else was answered.
    status = response.response_headers.get("grpc-status", "")
    if status:
        return status not in _REFUSED
    return response.response_code.value not in _REFUSED_HTTP


def caller_left(entry: Any) -> bool:
    """Says whether it was the caller who ended a call: left, waited too short, or did not read.

    The node's and the engine's failures are not the caller's to pay.
    """
    response = entry.response
    if response.response_code_details == "via_upstream":
        status = response.response_headers.get("grpc-status", "")
        return (status or response.response_trailers.get("grpc-status", "")) in _LEFT
    flags = entry.common_properties.response_flags
    return bool(
        flags.downstream_connection_termination
        or flags.downstream_remote_reset
        or flags.downstream_protocol_error
        or flags.stream_idle_timeout
        or flags.duration_timeout
        # A gRPC caller's own deadline; it sets no flag.
        or response.response_code_details == "max_duration_timeout"
    )
