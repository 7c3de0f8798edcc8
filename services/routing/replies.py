"""The answers of the endpoint picker protocol, encoded as Envoy reads them.

The protocol is the Gateway API Inference Extension's: the addresses to try, best first, in a
header and, with the same value, in the dynamic metadata of `envoy.lb`.

An answer is put together from pieces that are encoded once each: in protobuf the concatenation of
messages is their merge.
"""

import base64
from collections.abc import Sequence
from functools import lru_cache

import orjson
from envoy.config.core.v3 import base_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from envoy.type.v3 import http_status_pb2

from services.kit import headers
from services.kit.errors import MeshError
from services.routing.facts import Facts
from services.routing.router import Outcome

_METADATA_NAMESPACE = "envoy.lb"
_MODEL_KEY = "model"
_RETRY_ON_TIMEOUT = "x-envoy-hedge-on-per-try-timeout"
_TRY_TIMEOUT_MS = "x-envoy-upstream-rq-per-try-timeout-ms"
_MAX_RETRIES = "x-envoy-max-retries"
_ROUTE_RETRIES = 3
_SHOWN = 8

CONTINUE: bytes = pb.ProcessingResponse(
    request_headers=pb.HeadersResponse(response=pb.CommonResponse())
).SerializeToString()
"""Lets the call go on without a choice; Envoy balances it by itself."""


def told(outcome: Outcome, facts: Facts) -> Sequence[tuple[str, str]]:
    """Returns the headers that send a call where it was decided to go, the destination first.

    Args:
        outcome: The decision.
        facts: Whether the caller wants to see it, and may see all of it.
    """
    decision = outcome.decision
    nodes, models = decision.nodes, decision.models
    found = [(headers.DESTINATION, ",".join([node.address for node in nodes]))]
    if outcome.is_renamed or len(models) > 1:
        found.append((headers.MODELS, ",".join(models)))
    if outcome.is_renamed:
        # What Envoy balances by itself, and the ledger, go by the model that answers.
        found.append((headers.MODEL, models[0]))
        found.append((headers.REQUESTED_MODEL, facts.model))
    if decision.expected_cached is not None:
        found.append((headers.EXPECTED_CACHED, f"{decision.expected_cached:.2f}"))
    if outcome.hedge_after_s:
        found.append((_RETRY_ON_TIMEOUT, "true"))
        found.append((_TRY_TIMEOUT_MS, str(round(outcome.hedge_after_s * 1000))))
        # Each try that stays silent is followed by another one, up to the number of retries.
        found.append((_MAX_RETRIES, "1"))
    elif len(nodes) > _ROUTE_RETRIES + 1:
        found.append((_MAX_RETRIES, str(len(nodes) - 1)))
    if facts.debug:
        found.append((headers.DECISION, _shown(outcome, sees_all=facts.sees_all)))
    return found


def destination(outcome: Outcome, facts: Facts) -> bytes:
    """Returns the reply that sends a call where it was decided to go; see `told`."""
    (_, addresses), *more = told(outcome, facts)
    pieces = [_addresses(addresses)]
    for name, value in more:
        pieces.append(_set(name, value) if name != headers.DECISION else _uncached(name, value))
        if name == headers.MODEL:
            pieces.append(_metadata(_MODEL_KEY, value))
    return b"".join(pieces)


def refusal(error: MeshError, *, rest: bool) -> bytes:
    """Returns the reply that ends a call.

    Envoy makes an immediate response a gRPC one where the caller's own request was gRPC: the body
    then becomes `grpc-message`.

    Args:
        error: What the caller is told.
        rest: Whether the caller speaks REST; else it speaks gRPC.
    """
    reply = pb.ImmediateResponse(
        status=http_status_pb2.HttpStatus(code=error.http_status),
        details=f"infermesh_{error.reason_name.lower()}",
    )
    if rest:
        reply.body = error.openai_body().encode()
        reply.headers.set_headers.append(_header("content-type", "application/json"))
    else:
        reply.body = error.message.encode()
        reply.grpc_status.status = error.code.value[0]
        details = base64.b64encode(error.to_status().SerializeToString()).rstrip(b"=").decode()
        reply.headers.set_headers.append(_header("grpc-status-details-bin", details))
    if error.retry_after_s is not None:
        reply.headers.set_headers.append(_header("retry-after", str(error.retry_after_s)))
    return bytes(pb.ProcessingResponse(immediate_response=reply).SerializeToString())


@lru_cache(maxsize=4096)
def _addresses(value: str) -> bytes:
    """Returns the piece with the addresses; a mesh sees a few thousand orders at most."""
    return _uncached(headers.DESTINATION, value) + _metadata.__wrapped__(headers.DESTINATION, value)


@lru_cache(maxsize=1024)
def _set(name: str, value: str) -> bytes:
    mutation = pb.HeaderMutation(set_headers=[_header(name, value)])
    response = pb.HeadersResponse(response=pb.CommonResponse(header_mutation=mutation))
    return bytes(pb.ProcessingResponse(request_headers=response).SerializeToString())


@lru_cache(maxsize=1024)
def _metadata(key: str, value: str) -> bytes:
    reply = pb.ProcessingResponse()
    reply.dynamic_metadata.get_or_create_struct(_METADATA_NAMESPACE)[key] = value
    return bytes(reply.SerializeToString())


# Every decision reads differently.
_uncached = _set.__wrapped__


def _header(name: str, value: str) -> base_pb2.HeaderValueOption:
    return base_pb2.HeaderValueOption(
        header=base_pb2.HeaderValue(key=name, raw_value=value.encode()),
        append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def _shown(outcome: Outcome, *, sees_all: bool) -> str:
    """Returns the decision as JSON of one line, without characters that a header cannot hold.

    How busy nodes are and what they have cached says something of other callers, so that only
    operators see it.
    """
    decision = outcome.decision
    first = decision.nodes[0]
    best = next((one for one in decision.rated if one.node is first), None)
    shown: dict[str, object] = {
        "policy": outcome.plan.policy.name,
        "node": first.node_id,
        "score": round(best.score, 4) if best is not None else None,
        "models": decision.models,
    }
    if sees_all:
        shown["expected_cached"] = decision.expected_cached and round(decision.expected_cached, 4)
        shown["candidates"] = [
            {
                "node": one.node.node_id,
                "model": one.model,
                "score": round(one.score, 4),
                "scores": {name: round(score, 4) for name, score in one.scores.items()},
                "pressure": round(one.pressure, 3),
            }
            for one in decision.rated[:_SHOWN]
        ]
    return orjson.dumps(shown).decode()


def as_body(reply: bytes) -> bytes:
    """Returns an answer to request headers as one to a request body; a refusal stays as it is."""
    message = pb.ProcessingResponse.FromString(reply)
    if message.HasField("immediate_response"):
        return reply
    response = message.request_headers.response
    # The addresses come after the route was first looked up.
    response.clear_route_cache = response.HasField("header_mutation")
    message.request_body.response.CopyFrom(response)
    return bytes(message.SerializeToString())
