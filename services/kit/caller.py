"""Who calls, as Envoy and auth say in the call's metadata."""

import re
import uuid
from collections.abc import Iterable
from typing import NamedTuple

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
    """

    request_id: str
    attempt: int
    tenant: str
    key_id: str
    model: str
    models: tuple[str, ...] = ()
    expected_cached: float | None = None
    decision: str = ""


def caller_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> Caller:
    """Reads the metadata of a call."""
    said = {key: value for key, value in metadata or () if isinstance(value, str)}
    attempt = said.get(headers.ATTEMPT, "")
    share = said.get(headers.EXPECTED_CACHED, "")
    return Caller(
        request_id=said.get(headers.REQUEST_ID, "")[:_MAX_ID_CHARS] or str(uuid.uuid4()),
        attempt=int(attempt) if _ATTEMPT.fullmatch(attempt) else 1,
        tenant=said.get(headers.TENANT, ""),
        key_id=said.get(headers.KEY_ID, ""),
        model=said.get(headers.MODEL, ""),
        models=tuple(models.split(",")) if (models := said.get(headers.MODELS)) else (),
        expected_cached=float(share) if share and _SHARE.fullmatch(share) else None,
        decision=said.get(headers.DECISION, ""),
    )
