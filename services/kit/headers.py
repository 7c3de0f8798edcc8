"""The header names that the parts of the mesh say to each other, each written once.

Envoy strips all but the last from what clients send, before any filter reads them.
"""

REQUEST_ID = "x-request-id"
"""Envoy's id of the request; callers get it back, logs and the ledger carry it."""

ATTEMPT = "x-envoy-attempt-count"
"""Which try of Envoy's this is, from 1."""

FINAL = "x-envoy-ratelimited"
"""On refusals: Envoy tries no other node. Callers do not see it."""

KEY_ID = "x-mesh-key-id"
"""The caller's key, set by auth. A call without it comes from inside the mesh."""

TENANT = "x-mesh-tenant"
"""The caller's tenant, set by auth."""

PROJECT = "x-mesh-project"
"""The project of the caller's key, set by auth where it is not `default`."""

ROLE = "x-mesh-role"
"""The caller's role without its prefix, in lower case, set by auth."""

MODEL = "x-mesh-model"
"""The model that the call names, set by auth on calls that name one."""

ALLOWED_MODELS = "x-mesh-allowed-models"
"""Which models the caller's key may use, as `services.kit.globs` writes it; set by auth for keys
that are bound to some."""

GUARDRAILS = "x-mesh-guardrails"
"""What the caller's key wants of prompts: `infermesh.auth.v1.Guardrails`, serialized, in base64;
set by auth for keys that have any."""

CACHING = "x-mesh-caching"
"""`on` or `off`: whether earlier answers are given to the caller's key, as
`infermesh.auth.v1.Caching` says; set by auth for keys that say it, on calls that name a model."""

RESERVED = "x-mesh-reserved"
"""Set by auth where the caller has limits, so that the ledger must settle the call: `1`, or `place`
where the call counts among concurrent ones."""

AUDIT_BODY = "x-mesh-audit-body"
"""`1` where the audit log is to tell the form of the request; set by auth on calls that name a
model."""

ERROR_BODY = "x-mesh-error"
"""Trailer with the error body in the caller's dialect; Envoy makes it the body for REST callers."""

DESTINATION = "x-gateway-destination-endpoint"
"""Addresses to try in order, `ip:port,ip:port`, set by routing (endpoint picker protocol)."""

STREAM = "x-mesh-stream"
"""`false` where Envoy read in an OpenAI body that the caller wants no stream."""

SOURCE = "x-mesh-source"
"""The IP address from which a node joins, as Envoy sees it."""

NODE = "x-mesh-node"
"""The node that answered, set by Envoy on the response."""

REQUESTED_MODEL = "x-mesh-requested-model"
"""The model as the caller named it, set by routing where that is an alias: limits go by it."""

MODELS = "x-mesh-models"
"""Models to answer with, best first, `a,b`, set by routing where there is more than one. A node
answers with the first of them that it serves."""

EXPECTED_CACHED = "x-mesh-expected-cached"
"""Which share of the prompt routing expects in the node's prefix cache, 0.00 to 1.00."""

DECISION = "x-mesh-decision"
"""Routing's decision as JSON, where the caller sent `x-debug-mode: true`; the
node gives it back."""

REDACTIONS = "x-mesh-redactions"
"""How many places of the prompt the key's guardrails replaced; on answers, where there are any."""

CACHE = "x-mesh-cache"
"""`hit` where the answer was given before, `miss` where it could have been; on answers to calls
that may be answered so."""

CACHE_SIMILARITY = "x-mesh-cache-similarity"
"""How near the question is to the one that the answer was given to, `0.971`; on answers to calls
whose question was only nearly asked before."""

RETRY_AFTER = "retry-after"
"""After how many seconds a refused call is worth another try; on refusals, in callers' sight."""
