"""Free JSON in typed messages."""

from collections.abc import Mapping
from math import copysign
from typing import Any

from google.protobuf import struct_pb2

from services.inference import errors, extensions

# Structs know doubles only: beyond this not every whole number is one.
_MAX_WHOLE = 2**53


def plain(struct: struct_pb2.Struct) -> dict[str, Any]:
    """Returns a struct as Python's own types; whole numbers become ints."""
    return {name: _plain_value(value) for name, value in struct.fields.items()}


def struct_of(fields: Mapping[str, Any]) -> struct_pb2.Struct:
    """Returns JSON as a struct; whole numbers are exact up to 2^53."""
    struct = struct_pb2.Struct()
    struct.update(dict(fields))
    return struct


def options(struct: struct_pb2.Struct, own: frozenset[str]) -> dict[str, Any]:
    """Returns the fields of `engine_options`.

    Args:
        struct: The field.
        own: The fields of OpenAI's JSON that the message has fields of its own for.

    Raises:
        MeshError: `INVALID_ARGUMENT`: there is one of these among them, which the mesh has read
            elsewhere already.
    """
    fields = plain(struct)
    for name in fields:
        # Some engines take names in any case.
        if name.lower() in own or name.lower() in extensions.NAMES:
            raise errors.invalid(
                f"engine_options.{name[:100]}", "has a field of its own in the request"
            )
    return fields


def _plain_value(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return plain(value.struct_value)
    if kind == "list_value":
        return [_plain_value(item) for item in value.list_value.values]
    if kind == "number_value":
        # Engines take counts as ints; no int is minus zero.
        number = value.number_value
        is_count = number.is_integer() and abs(number) < _MAX_WHOLE
        return int(number) if is_count and (number or copysign(1, number) > 0) else number
    if kind in (None, "null_value"):
        return None
    return getattr(value, kind)
