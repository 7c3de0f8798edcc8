"""The answers to Envoy's authorization checks, as bytes ready for the wire.

Envoy's protocol: https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/service/auth/v3/external_auth.proto
"""

from envoy.service.auth.v3 import external_auth_pb2
from google.rpc import code_pb2

from services.kit import headers
from services.kit.authorization import header

DEFAULT_PROJECT = "default"


def _known() -> bytes:
    response = external_auth_pb2.CheckResponse()
    response.status.code = code_pb2.OK
    response.ok_response.SetInParent()
    return bytes(response.SerializeToString())


KNOWN = _known()
"""Lets a call go on to the question what it may do; says nothing of the caller."""


def allow(
    key_id: str,
    tenant: str,
    role: str,
    model: str,
    allowed_models: str = "",
    *,
    project: str = DEFAULT_PROJECT,
    guardrails: str = "",
    caching: str = "",
    audits_body: bool = False,
) -> bytes:
    """Returns the answer that lets a call pass, with the caller's identity for the services.

    The secret goes no further. `model` is empty where the call names none, `allowed_models` where
    the key may use all. Of the default project nothing is said, nor are guardrails and caching of
    calls that name no model.
    """
    response = external_auth_pb2.CheckResponse()
    response.status.code = code_pb2.OK
    ok = response.ok_response
    for name, value in (
        (headers.KEY_ID, key_id),
        (headers.TENANT, tenant),
        (headers.ROLE, role),
        (headers.MODEL, model),
    ):
        if value:
            ok.headers.append(header(name, value))
        else:
            ok.headers_to_remove.append(name)
    if allowed_models:
        ok.headers.append(header(headers.ALLOWED_MODELS, allowed_models))
    if project != DEFAULT_PROJECT:
        ok.headers.append(header(headers.PROJECT, project))
    if audits_body and model:
        ok.headers.append(header(headers.AUDIT_BODY, "1"))
    if guardrails and model:
        ok.headers.append(header(headers.GUARDRAILS, guardrails))
    if caching and model:
        ok.headers.append(header(headers.CACHING, caching))
    ok.headers_to_remove.extend(("authorization", "x-api-key"))
    return bytes(response.SerializeToString())
