"""Who calls, as Envoy and auth say in the call's metadata."""

import re
import uuid
from collections.abc import Iterable
from typing import NamedTuple, cast

from services.kit import headers

_MAX_ID_CHARS = 64
_ATTEMPT = re.compile("[1-9][0-9]{0,5}")
_SHARE = re.compile(r"0(\.[0-9]{1,9})?|1(\.0{1,9})?")


class Caller(NamedTuple):
    """The facts of a call that are not in its body.

    Args:
        request_id: Envoy's id of the request; a new one for a call that comes without.
        attempt: Which try of Envoy's this is, from 1.
        tenant: The caller's tenant; empty inside the mesh.
        key_id: The caller's key; empty inside the mesh, and then the call is not accounted.
        model: The model that auth allowed; empty inside the mesh.
        models: Models to answer with, best first; empty where routing leaves it to the body.
        expected_cached: Which share of the prompt routing expects in the node's prefix cache, 0 to
            1; None where it says nothing.
        decision: Routing's decision as JSON, for callers that want to see it; else empty.
        project: The project of the caller's key; empty is `default`.
        requested_model: The model as the caller named it; empty inside the mesh.
        reserved: Whether auth reserved something for the call, and so has to be told what it took.
        audits_body: Whether the audit log is to tell the form of the request.
        guardrails: What the key wants of prompts, as `services.kit.guardrails` reads it; empty is
            nothing.
        caching: What the key wants of earlier answers, `on` or `off`; empty leaves it to the call.
    """

    request_id: str
    attempt: int
    tenant: str
    key_id: str
    model: str
    models: tuple[str, ...] = ()
    expected_cached: float | None = None
    decision: str = ""
    project: str = ""
    requested_model: str = ""
    reserved: bool = False
    guardrails: str = ""
    audits_body: bool = False
    caching: str = ""


def caller_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> Caller:
    """Reads the metadata of a call."""
    # What is read here is text: only names that end in `-bin` stand for bytes.
    said: dict[str, str] = dict(cast("Iterable[tuple[str, str]]", metadata or ()))
    attempt = said.get(headers.ATTEMPT, "")
    share = said.get(headers.EXPECTED_CACHED, "")
    return Caller(
        request_id=said.get(headers.REQUEST_ID, "")[:_MAX_ID_CHARS] or str(uuid.uuid4()),
        attempt=1 if attempt == "1" or not _ATTEMPT.fullmatch(attempt) else int(attempt),
        tenant=said.get(headers.TENANT, ""),
        key_id=said.get(headers.KEY_ID, ""),
        model=said.get(headers.MODEL, ""),
        models=tuple(models.split(",")) if (models := said.get(headers.MODELS)) else (),
        expected_cached=float(share) if share and _SHARE.fullmatch(share) else None,
        decision=said.get(headers.DECISION, ""),
        project=said.get(headers.PROJECT, ""),
        # Routing says so of aliases only.
        requested_model=said.get(headers.REQUESTED_MODEL) or said.get(headers.MODEL, ""),
        reserved=headers.RESERVED in said,
        guardrails=said.get(headers.GUARDRAILS, ""),
        audits_body=headers.AUDIT_BODY in said,
        caching=said.get(headers.CACHING, ""),
    )
