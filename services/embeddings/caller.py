"""Who calls, as Envoy and auth say in the request's headers."""

import uuid
from collections.abc import Iterable
from typing import NamedTuple

from services.kit import headers


class Caller(NamedTuple):
    """The facts of a call that are not in its body.

    Args:
        request_id: Envoy's id of the request; a new one for a call from inside the mesh.
        attempt: Which try of Envoy's this is, from 1.
        tenant: The caller's tenant; empty inside the mesh.
        key_id: The caller's key; empty inside the mesh, and then the call is not accounted.
        model: The model that auth has checked; empty inside the mesh.
    """

    request_id: str
    attempt: int
    tenant: str
    key_id: str
    model: str


def caller_of(metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
    """Reads the headers of a call."""
    said = {key: value for key, value in metadata if isinstance(value, str)}
    attempt = said.get(headers.ATTEMPT, "")
    return Caller(
        request_id=said.get(headers.REQUEST_ID) or str(uuid.uuid4()),
        attempt=max(1, int(attempt)) if attempt.isascii() and attempt.isdigit() else 1,
        tenant=said.get(headers.TENANT, ""),
        key_id=said.get(headers.KEY_ID, ""),
        model=said.get(headers.MODEL, ""),
    )
