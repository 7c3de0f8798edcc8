"""Which calls gave no engine work, by what Envoy's access log says of them."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2

from services.auth import access_log


def entry(
    code: int,
    details: str = "via_upstream",
    *,
    host: bool = True,
    attempts: int = 1,
    grpc_status: str = "",
    connection_failure: bool = False,
) -> accesslog_pb2.HTTPAccessLogEntry:
    made = accesslog_pb2.HTTPAccessLogEntry()
    made.request.request_id = "r"
    common = made.common_properties
    if host:
        common.upstream_remote_address.socket_address.address = "127.0.0.1"
        common.upstream_request_attempt_count = attempts
    common.response_flags.upstream_connection_failure = connection_failure
    made.response.response_code.value = code
    made.response.response_code_details = details
    if grpc_status:
        made.response.response_headers["grpc-status"] = grpc_status
    return made


@pytest.mark.parametrize(
    ("said", "reached"),
    [
        (entry(200), True),
        # An error in the middle of a stream stands in the trailers.
        (entry(200, grpc_status="0"), True),
        # The engine failed or timed out: it may have worked.
        (entry(500), True),
        (entry(504), True),
        (entry(200, grpc_status="13"), True),
        (entry(200, grpc_status="4"), True),
        # The caller left, or the node did.
        (entry(0, "downstream_remote_disconnect"), True),
        (entry(503, "upstream_reset_before_response_started{connection_termination}"), True),
        # Refused by the node: a bad request, an unknown model, a full queue, draining.
        (entry(400), False),
        (entry(404), False),
        (entry(429), False),
        (entry(503), False),
        (entry(200, grpc_status="3"), False),
        (entry(200, grpc_status="8"), False),
        (entry(200, grpc_status="14"), False),
        # Nobody to go to; routing's refusal.
        (entry(503, "no_healthy_upstream", host=False), False),
        (entry(404, "infermesh_model_not_found", host=False), False),
        (entry(0, "downstream_remote_disconnect", host=False), False),
        (entry(503, "upstream_reset_before_response_started", connection_failure=True), False),
        # An earlier try may have come further than the last one.
        (
            entry(
                503, "upstream_reset_before_response_started", connection_failure=True, attempts=2
            ),
            True,
        ),
    ],
)
async def test_who_gets_everything_back(said: Any, reached: bool) -> None:
    told: list[tuple[str, bool]] = []

    class Limiter:
        def release(self, request_id: str, *, reached_node: bool, caller_left: bool) -> None:
            told.append((request_id, reached_node))

    async def messages() -> AsyncIterator[Any]:
        message = als_pb2.StreamAccessLogsMessage()
        message.http_logs.log_entry.append(said)
        yield message

    await access_log._read(messages(), Limiter())  # type: ignore[arg-type]
    assert told == [("r", reached)]


def flagged(details: str, **flags: bool) -> accesslog_pb2.HTTPAccessLogEntry:
    made = entry(200, details)
    for name, value in flags.items():
        setattr(made.common_properties.response_flags, name, value)
    return made


def trailing(status: str) -> accesslog_pb2.HTTPAccessLogEntry:
    made = entry(200)
    made.response.response_trailers["grpc-status"] = status
    return made


@pytest.mark.parametrize(
    ("said", "left"),
    [
        (flagged("downstream_remote_disconnect", downstream_connection_termination=True), True),
        (flagged("downstream_remote_reset", downstream_remote_reset=True), True),
        # Who stops reading, or sets a deadline that the engine cannot keep, is no better.
        (flagged("stream_idle_timeout", stream_idle_timeout=True), True),
        (flagged("max_duration_timeout"), True),
        (trailing("4"), True),
        (entry(200, grpc_status="1"), True),
        # The node's or the engine's fault.
        (flagged("upstream_reset_after_response_started", upstream_remote_reset=True), False),
        (trailing("13"), False),
        (trailing("0"), False),
        (entry(500), False),
        (entry(200), False),
    ],
)
def test_who_ended_a_call(said: Any, left: bool) -> None:
    assert access_log.caller_left(said) is left
