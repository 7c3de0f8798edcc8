"""Reads what gateways say of a call, in Envoy's external processing and authorization messages."""

from collections.abc import Iterable, Mapping
from typing import Any

from envoy.service.auth.v3 import external_auth_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf import struct_pb2

from services.kit import globs, headers
from services.kit.authorization import ORIGINAL_PATH
from services.routing.facts import Facts
from services.routing.filters import capability

REQUEST_NAMESPACE = "infermesh.request"
"""Where our Envoy puts fields of the body."""

PROMPT_NAMESPACE = "infermesh.prompt"
"""Where our Envoy puts the cut of the prompt, its size, and whether there are tools or pictures."""

FALLBACKS_NAMESPACE = "infermesh.fallbacks"
"""Where our Envoy puts the caller's list of fallback models, from an OpenAI body."""

SERVED = "x-gateway-destination-endpoint-served"
"""Where a gateway says which endpoint answered (endpoint picker protocol)."""

TYPED_NAMESPACE = "envoy.filters.http.grpc_field_extraction"
"""Where our Envoy puts fields of typed messages, each as a list under its path."""

_SUBSET_NAMESPACE = "envoy.lb.subset_hint"
_SUBSET = "x-gateway-destination-endpoint-subset"
_PATH = ":path"
_DEBUG = "x-debug-mode"
_OPERATORS = ("admin", "operator", "auditor")
_REST_PREFIX = "/v1/"


def facts_of(request: pb.ProcessingRequest) -> Facts:
    """Returns what the headers and the dynamic metadata of a call say."""
    facts = Facts()
    for header in request.request_headers.headers.headers:
        key = header.key
        if key == headers.MODEL:
            facts.model = _value(header)
        elif key == headers.KEY_ID:
            facts.key_id = _value(header)
        elif key == headers.ALLOWED_MODELS:
            facts.globs = globs.read(_value(header))
        elif key == _DEBUG:
            facts.debug = _value(header) == "true"
        elif key == headers.ROLE:
            facts.sees_all = _value(header) in _OPERATORS
        elif key == ORIGINAL_PATH or (key == _PATH and _value(header).startswith(_REST_PREFIX)):
            facts.is_rest = True
        elif key == _SUBSET:
            facts.subset = _addresses(_value(header))
    if request.HasField("metadata_context"):
        known = request.metadata_context.filter_metadata
        _take_metadata(facts, known)
        if _SUBSET_NAMESPACE in known:
            hint = known[_SUBSET_NAMESPACE]
            if _SUBSET in hint:
                facts.subset = _addresses(hint[_SUBSET])
    return facts


def facts_of_check(request: external_auth_pb2.CheckRequest) -> Facts:
    """Returns what our own Envoy, or auth in its place, says of a call."""
    attributes = request.attributes
    said = attributes.request.http.headers
    facts = Facts(
        model=said.get(headers.MODEL, ""),
        key_id=said.get(headers.KEY_ID, ""),
        debug=said.get(_DEBUG) == "true",
        sees_all=said.get(headers.ROLE) in _OPERATORS,
        is_rest=ORIGINAL_PATH in said,
    )
    allowed = said.get(headers.ALLOWED_MODELS)
    if allowed is not None:
        facts.globs = globs.read(allowed)
    _take_metadata(facts, attributes.metadata_context.filter_metadata)
    return facts


def _take_metadata(facts: Facts, known: Mapping[str, Any]) -> None:
    if TYPED_NAMESPACE in known:
        # Of these calls the other namespace says only that their body is no JSON.
        facts.take_fields(_typed(known[TYPED_NAMESPACE]))
    elif REQUEST_NAMESPACE in known:
        facts.take_fields(known[REQUEST_NAMESPACE])
    if PROMPT_NAMESPACE in known:
        prompt = known[PROMPT_NAMESPACE].fields
        if "tools" in prompt and prompt["tools"].bool_value:
            facts.needs |= capability.TOOLS
        if "vision" in prompt and prompt["vision"].bool_value:
            facts.needs |= capability.VISION
        facts.take_encoded_prompt(prompt["text"].string_value, prompt["size"].number_value)
    if FALLBACKS_NAMESPACE in known:
        listed = known[FALLBACKS_NAMESPACE].fields["models"].string_value
        facts.take_encoded_fallbacks(listed)


def served(message: pb.ProcessingRequest) -> str:
    """Returns the address that a gateway reports to have answered; empty where it says nothing."""
    known = message.metadata_context.filter_metadata
    if "envoy.lb" in known and SERVED in known["envoy.lb"]:
        return str(known["envoy.lb"][SERVED])
    for header in message.response_headers.headers.headers:
        if header.key == SERVED:
            return _value(header)
    return ""


def _typed(known: struct_pb2.Struct) -> dict[str, object]:
    fields: dict[str, object] = {}
    for path, value in known.fields.items():
        name = path.rpartition(".")[2]
        values = [each.string_value for each in value.list_value.values]
        if values and values[0]:
            fields[name] = values if name == "fallback_models" else values[0]
    return fields


def _value(header: Any) -> str:
    raw = header.raw_value
    return str(raw.decode(errors="replace") if raw else header.value)


def _addresses(value: object) -> frozenset[str]:
    parts: Iterable[object] = ()
    if isinstance(value, str):
        parts = value.split(",")
    elif isinstance(value, struct_pb2.ListValue):
        parts = [each.string_value for each in value.values]
    return frozenset(part.strip() for part in parts if isinstance(part, str) and part.strip())
