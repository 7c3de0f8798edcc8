"""Any typed message, made from its descriptor and its rules: a new field is tried by itself."""

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf import struct_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from buf.validate import validate_pb2

TEXT = st.text(max_size=6)
_NUMBERS = st.floats(-100, 100, allow_nan=False) | st.integers(-(2**53) + 1, 2**53 - 1)
_VALUES = st.recursive(
    st.none() | st.booleans() | TEXT | _NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)
OBJECTS = st.dictionaries(TEXT, _VALUES, max_size=3)

_INTS = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64}

Overrides = Mapping[str, st.SearchStrategy[Any]]


def struct(data: Mapping[str, Any]) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(dict(data))
    return made


def messages(
    descriptor: Descriptor,
    overrides: Overrides,
    tidy: Mapping[str, Callable[[Any], None]] | None = None,
) -> st.SearchStrategy[Any]:
    """Returns messages of a kind, each field there or not.

    Args:
        descriptor: The kind.
        overrides: Values for single fields, by the field's full name; None leaves it unset.
        tidy: Makes messages of a kind what they may be together, by the kind's name.
    """
    tidy = tidy or {}
    kind = GetMessageClass(descriptor)

    @st.composite
    def build(draw: st.DrawFn) -> Message:
        said: dict[str, Any] = {}
        choices = [o for o in descriptor.oneofs if not o.name.startswith("_")]
        chosen = {draw(st.sampled_from([f.name for f in o.fields])) for o in choices}
        for field in descriptor.fields:
            oneof = field.containing_oneof
            if oneof in choices and field.name not in chosen:
                continue
            rules = field.GetOptions().Extensions[validate_pb2.field]
            # What may not be 0 is always there.
            must = field.name in chosen or field.full_name in overrides or rules.enum.not_in
            if not must and draw(st.booleans()):
                continue
            value = draw(_values(field, overrides, tidy))
            if value is not None:
                said[field.name] = value
        message = kind(**said)
        if descriptor.name in tidy:
            tidy[descriptor.name](message)
        return message

    return build()


def _values(
    field: FieldDescriptor, overrides: Overrides, tidy: Mapping[str, Callable[[Any], None]]
) -> st.SearchStrategy[Any]:
    if field.full_name in overrides:
        return overrides[field.full_name]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        parts = field.message_type.fields_by_name
        return st.dictionaries(
            _one(parts["key"], overrides, tidy), _one(parts["value"], overrides, tidy), max_size=2
        )
    one = _one(field, overrides, tidy)
    return st.lists(one, max_size=3) if field.is_repeated else one


def _one(
    field: FieldDescriptor, overrides: Overrides, tidy: Mapping[str, Callable[[Any], None]]
) -> st.SearchStrategy[Any]:
    rules = field.GetOptions().Extensions[validate_pb2.field]
    if field.is_repeated:
        rules = rules.repeated.items
    words = list(getattr(rules.string, "in"))
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=4)
        return st.sampled_from(words) if words else TEXT
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.just(True) if rules.bool.const else st.booleans()
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        banned = list(rules.enum.not_in)
        return st.sampled_from([n for n in field.enum_type.values_by_number if n not in banned])
    if field.cpp_type in _INTS:
        return st.integers(0, 16)
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return st.floats(-2, 2)
    kind = field.message_type
    if kind.full_name == struct_pb2.Struct.DESCRIPTOR.full_name:
        return OBJECTS.map(struct)
    if kind.full_name == timestamp_pb2.Timestamp.DESCRIPTOR.full_name:
        return st.integers(1, 2**33).map(lambda s: timestamp_pb2.Timestamp(seconds=s))
    return messages(kind, overrides, tidy)
