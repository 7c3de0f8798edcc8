"""Which models a call names, by what Envoy's filters read in its body."""

import binascii
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from services.auth import errors
from services.kit.globs import ModelGlobs

# Filled by envoy/fields.lua: `model` is a string, `body` is `invalid` for what it cannot
# read. To it that includes every body that is not declared as JSON, and so all of gRPC's.
_REST_NAMESPACE = "infermesh.request"

# Filled by Envoy's `grpc_field_extraction`: a list with one string for each field path.
_GRPC_NAMESPACE = "envoy.filters.http.grpc_field_extraction"
_GRPC_FIELDS = ("model", "chat.model")

_GRPC_FALLBACKS = ("fallback_models", "chat.fallback_models")

# Filled by Envoy's Lua: `models` is the caller's list as it stands in the body, in base64.
_REST_FALLBACKS = "infermesh.fallbacks"


def rest_model(metadata: Mapping[str, Any]) -> str:
    """Returns the model that a REST call names.

    Raises:
        MeshError: The body is no JSON, or names none.
    """
    found = metadata.get(_REST_NAMESPACE)
    if found is not None:
        body = found.fields.get("body")
        if body is not None and body.string_value == "invalid":
            raise errors.invalid_json()
        model = found.fields.get("model")
        if model is not None and model.string_value:
            return str(model.string_value)
    raise errors.missing_model()


def check_fallbacks(metadata: Mapping[str, Any], globs: ModelGlobs) -> None:
    """Checks that a key may use all models that its call names besides.

    Raises:
        MeshError: It may not.
    """
    # Refused as a whole, so that the caller learns of it. Routing passes over what is not seen
    # here, such as a list in the middle of a long body.
    names: list[Any] = []
    if (found := metadata.get(_REST_FALLBACKS)) is not None:
        try:
            said = orjson.loads(binascii.a2b_base64(found.fields["models"].string_value))
        except ValueError:
            said = ()  # The node says what is wrong with it.
        names.extend(said if isinstance(said, list) else ())
    if (found := metadata.get(_GRPC_NAMESPACE)) is not None:
        for field in _GRPC_FALLBACKS:
            if field in found.fields:
                names.extend(each.string_value for each in found.fields[field].list_value.values)
    check_names(names, globs)


def check_names(names: Iterable[Any], globs: ModelGlobs) -> None:
    """Checks that a key may use these fallback models.

    Raises:
        MeshError: It may not.
    """
    for name in names:
        if isinstance(name, str) and name and not globs.allow(name):
            raise errors.model_not_found(name, "fallback_models")


def typed_model(metadata: Mapping[str, Any]) -> str:
    """Returns the model that a typed call names.

    Raises:
        MeshError: It names none.
    """
    found = metadata.get(_GRPC_NAMESPACE)
    if found is not None:
        for name in _GRPC_FIELDS:
            model = found.fields.get(name)
            if model is not None and model.list_value.values:
                value = model.list_value.values[0].string_value
                if value:
                    return str(value)
    raise errors.missing_model()
