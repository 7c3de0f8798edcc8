"""Calls with JSON bodies to a node, and the guardrails of a strict key."""

from typing import Any

import orjson
from google.api import httpbody_pb2

from inference_node import refusal
from infermesh.auth.v1 import key_service_pb2
from services.kit import headers
from services.kit.guardrails import header

GUARDED = (
    (
        headers.GUARDRAILS,
        header.write(
            key_service_pb2.Guardrails(
                blocked_patterns=["zebra"], redact=[key_service_pb2.REDACTION_EMAIL_ADDRESSES]
            )
        ),
    ),
)


async def http(call: Any, metadata: Any = (), **fields: Any) -> dict[str, Any]:
    body = httpbody_pb2.HttpBody(data=orjson.dumps(fields))
    return orjson.loads((await call(body, metadata=metadata)).data)


async def refused(call: Any, metadata: Any = (), **fields: Any) -> tuple[str, str | None]:
    body = httpbody_pb2.HttpBody(data=orjson.dumps(fields))
    return await refusal(call(body, metadata=metadata))
