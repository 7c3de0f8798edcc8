"""What auth refuses, each refusal worded once."""

from infermesh.errors.v1 import errors_pb2
from services.kit.errors import MeshError


def key_not_found(key_id: str) -> MeshError:
    """No key has this id."""
    return MeshError(
        errors_pb2.ERROR_REASON_NOT_FOUND,
        f"There is no key `{key_id}`.",
        metadata={"key_id": key_id},
    )


def token_not_found(token_id: str) -> MeshError:
    """No join token has this id."""
    return MeshError(
        errors_pb2.ERROR_REASON_NOT_FOUND,
        f"There is no join token `{token_id}`.",
        metadata={"token_id": token_id},
    )


def token_spent(max_uses: int) -> MeshError:
    """As many nodes as may have joined with the token."""
    return MeshError(
        errors_pb2.ERROR_REASON_FAILED_PRECONDITION,
        f"The join token is used up: {max_uses} nodes joined with it. Ask for a new one.",
    )


def no_authority() -> MeshError:
    """Nobody in this mesh signs certificates."""
    return precondition(
        "This mesh has no authority that signs certificates: it speaks no TLS inside."
    )


def no_nodes_key() -> MeshError:
    """The key is good for any node, so that it can have no one's certificate."""
    return precondition(
        "The key was not got with a join token, so that it is no one node's. Join with a token."
    )


def bad_signing_request(why: str) -> MeshError:
    """The request for a certificate is not a good one."""
    return MeshError(
        errors_pb2.ERROR_REASON_INVALID_ARGUMENT,
        f"signing_request: {why}",
        param="signing_request",
    )


def last_admin_key(key_id: str) -> MeshError:
    """Without this key nobody could administer the mesh."""
    return MeshError(
        errors_pb2.ERROR_REASON_FAILED_PRECONDITION,
        f"`{key_id}` is the last valid admin key. Create another admin key first.",
        metadata={"key_id": key_id},
    )


def invalid_page_token() -> MeshError:
    """The token is not one that a list returned."""
    return MeshError(
        errors_pb2.ERROR_REASON_INVALID_ARGUMENT,
        "page_token: is not one that this service returned",
        param="page_token",
    )


def tenant_not_found(tenant: str) -> MeshError:
    """No tenant has this name."""
    return MeshError(
        errors_pb2.ERROR_REASON_NOT_FOUND,
        f"There is no tenant `{tenant}`.",
        metadata={"tenant": tenant},
    )


def project_not_found(tenant: str, project: str) -> MeshError:
    """The tenant has no such project."""
    return MeshError(
        errors_pb2.ERROR_REASON_NOT_FOUND,
        f"The tenant `{tenant}` has no project `{project}`.",
        metadata={"tenant": tenant, "project": project},
    )


def limits_not_found(scope_id: str) -> MeshError:
    """The scope has no limits."""
    return MeshError(
        errors_pb2.ERROR_REASON_NOT_FOUND,
        f"There are no limits of `{scope_id}`.",
        metadata={"scope": scope_id},
    )


def precondition(message: str) -> MeshError:
    """What is there does not allow it; the message says what."""
    return MeshError(errors_pb2.ERROR_REASON_FAILED_PRECONDITION, message)


def too_many_patterns(chars: int) -> MeshError:
    """The patterns of models do not fit into the header that carries them."""
    return MeshError(
        errors_pb2.ERROR_REASON_INVALID_ARGUMENT,
        f"rules.allowed_models: with denied_models the patterns are longer than {chars} characters",
        param="rules.allowed_models",
    )


def invalid_pattern(index: int | None, message: str) -> MeshError:
    """A pattern of the guardrails cannot be used, or all of them together."""
    param = "rules.guardrails.blocked_patterns"
    if index is not None:
        param += f"[{index}]"
    return MeshError(errors_pb2.ERROR_REASON_INVALID_ARGUMENT, f"{param}: {message}", param=param)


def wrong_network() -> MeshError:
    """The key may not be used from the caller's address."""
    return MeshError(
        errors_pb2.ERROR_REASON_PERMISSION_DENIED,
        "The API key may not be used from this network.",
    )


def wrong_origin() -> MeshError:
    """The key may not be used by the web page that calls."""
    return MeshError(
        errors_pb2.ERROR_REASON_PERMISSION_DENIED,
        "The API key may not be used by web pages of this origin.",
    )


def missing_api_key() -> MeshError:
    """The call carries nothing that could be a key."""
    return MeshError(
        errors_pb2.ERROR_REASON_INVALID_API_KEY,
        "You did not provide an API key. Send it as `Authorization: Bearer im-…`.",
    )


def invalid_api_key() -> MeshError:
    """The key is malformed, unknown or revoked; which of them is not told."""
    return MeshError(errors_pb2.ERROR_REASON_INVALID_API_KEY, "The API key is not valid.")


def unknown_url(method: str, path: str) -> MeshError:
    """The path is not part of the API."""
    return MeshError(
        errors_pb2.ERROR_REASON_UNKNOWN_URL, f"Unknown request URL: {method} {path[:200]}"
    )


def permission_denied(role: str) -> MeshError:
    """The role may not call the RPC."""
    return MeshError(
        errors_pb2.ERROR_REASON_PERMISSION_DENIED,
        f"A key of the role `{role}` may not make this call.",
        metadata={"role": role},
    )


def invalid_json() -> MeshError:
    """The body does not parse, or is not declared as JSON."""
    return MeshError(
        errors_pb2.ERROR_REASON_INVALID_JSON,
        "The request body could not be parsed as JSON. "
        "Send JSON with `content-type: application/json`.",
    )


def unreadable_request() -> MeshError:
    """The call cannot be read at all, for instance for text that is not UTF-8."""
    return MeshError(
        errors_pb2.ERROR_REASON_INVALID_ARGUMENT, "The request holds text that is not valid UTF-8."
    )


def missing_model() -> MeshError:
    """The call must name a model and does not."""
    return MeshError(
        errors_pb2.ERROR_REASON_INVALID_ARGUMENT,
        "you must provide a model: a string in the field `model`",
        param="model",
    )


def model_not_found(model: str, param: str = "model") -> MeshError:
    """No model can have this name, or the key may not use it; which of them is not told."""
    return MeshError(
        errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
        f"The model `{model[:200]}` does not exist or you do not have access to it.",
        param=param,
        metadata={"model": model[:200]},
    )
