"""Asks routing where a call goes, so that Envoy asks once for each call, and not twice.

Routing is asked while Redis looks at the call's limits. It answers with what becomes part of auth's
own answer: the headers that send the call on, or its refusal.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from envoy.service.auth.v3 import external_auth_pb2

from services.auth.later import then
from services.kit import headers
from services.kit.authorization import ORIGINAL_PATH
from services.kit.unary_client import UnaryClient

TIMEOUT_S = 0.25
"""After this long without an answer the call goes on without: Envoy balances it by itself."""

_ROUTED = "/infermesh.inference.v1."
_PASSED_ON = (ORIGINAL_PATH, "x-debug-mode")


class Routes:
    """Knows where calls go.

    Args:
        client: Calls `Check` of routing.
    """

    def __init__(self, client: UnaryClient) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()

    def ask(
        self, attributes: Any, key_id: str, role: str, model: str, allowed_models: str
    ) -> "asyncio.Future[bytes | None]":
        """Asks where a call goes.

        Args:
            attributes: The attributes of Envoy's `CheckRequest`.
            key_id: The caller's key.
            role: Its role.
            model: The model that the call names.
            allowed_models: The models that the key may use, as in `x-mesh-allowed-models`; empty
                for all.
        """
        question = external_auth_pb2.CheckRequest()
        # Neither the caller's secret nor where it calls from is routing's business.
        question.attributes.metadata_context.CopyFrom(attributes.metadata_context)
        said, to = attributes.request.http.headers, question.attributes.request.http.headers
        for name in _PASSED_ON:
            if name in said:
                to[name] = said[name]
        to[headers.KEY_ID], to[headers.ROLE], to[headers.MODEL] = key_id, role, model
        if allowed_models:
            to[headers.ALLOWED_MODELS] = allowed_models
        future: asyncio.Future[bytes | None] = self._loop.create_future()

        def on_answer(answer: bytes | None) -> None:
            if not future.done():
                future.set_result(answer)

        self._client.ask(question.SerializeToString(), on_answer)
        return future


def is_routed(path: str) -> bool:
    """Says whether calls of an RPC go to nodes."""
    return path.startswith(_ROUTED)


def added(
    reply: bytes, route: "asyncio.Future[bytes | None]", on_refused: Callable[[], None] | None
) -> "bytes | asyncio.Future[bytes]":
    """Returns an answer that lets a call pass, with where it goes; where routing refuses, that.

    Args:
        reply: The answer.
        route: What routing says.
        on_refused: Called where routing refuses; None for nothing.
    """

    def add(routed: bytes | None) -> bytes:
        if routed is None:
            return reply
        if external_auth_pb2.CheckResponse.FromString(routed).HasField("denied_response"):
            if on_refused is not None:
                on_refused()
            return routed
        # In protobuf the concatenation of messages is their merge; of headers the last one counts.
        return reply + routed

    return then(route, add)
