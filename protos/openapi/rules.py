"""The rules of `buf.validate` as those of JSON Schema, as far as it has words for them."""

from typing import Any

from google.protobuf import descriptor_pb2

from buf.validate import validate_pb2

_NUMBERS = ("int32", "uint32", "sint32", "float", "double")
_BOUNDS = {
    "gte": "minimum",
    "gt": "exclusiveMinimum",
    "lte": "maximum",
    "lt": "exclusiveMaximum",
}


def rules_of(field: descriptor_pb2.FieldDescriptorProto) -> validate_pb2.FieldRules:
    """Returns a field's rules; empty where it has none."""
    return field.options.Extensions[validate_pb2.field]


def is_required(field: descriptor_pb2.FieldDescriptorProto) -> bool:
    """Says whether a message without the field breaks a rule: what is not there counts as empty."""
    rules = rules_of(field)
    if rules.required:
        return True
    has_presence = field.HasField("oneof_index")  # of an `optional` field too
    return not has_presence and (rules.string.min_len > 0 or rules.repeated.min_items > 0)


def apply_rules(schema: dict[str, Any], rules: validate_pb2.FieldRules) -> dict[str, Any]:
    """Adds rules to a schema, and returns it."""
    kind = rules.WhichOneof("type")
    if kind in _NUMBERS:
        numbers = getattr(rules, kind)
        for name, word in _BOUNDS.items():
            if numbers.HasField(name):
                schema[word] = getattr(numbers, name)
    elif kind == "string":
        _apply(schema, rules.string, {"min_len": "minLength", "max_len": "maxLength"})
        if rules.string.HasField("pattern"):
            schema["pattern"] = rules.string.pattern
        if getattr(rules.string, "in"):
            schema["enum"] = list(getattr(rules.string, "in"))
    elif kind == "repeated":
        _apply(schema, rules.repeated, {"min_items": "minItems", "max_items": "maxItems"})
        if rules.repeated.unique:
            schema["uniqueItems"] = True
    return schema


def _apply(schema: dict[str, Any], rules: Any, words: dict[str, str]) -> None:
    for name, word in words.items():
        if rules.HasField(name):
            schema[word] = getattr(rules, name)
