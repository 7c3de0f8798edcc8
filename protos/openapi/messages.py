"""Protobuf messages as JSON Schema, in the JSON that Envoy's transcoder reads and writes."""

from collections.abc import Collection
from typing import Any

from google.protobuf import descriptor_pb2
from rules import apply_rules, is_required, rules_of
from sources import Sources

Schema = dict[str, Any]

_F = descriptor_pb2.FieldDescriptorProto

# 64-bit numbers are texts in protobuf's JSON, for JavaScript has no room for them.
_LONG: Schema = {"type": "string", "pattern": "^-?[0-9]+$", "format": "int64"}
_SCALARS: dict[int, Schema] = {
    _F.TYPE_DOUBLE: {"type": "number", "format": "double"},
    _F.TYPE_FLOAT: {"type": "number", "format": "float"},
    _F.TYPE_INT64: _LONG,
    _F.TYPE_SINT64: _LONG,
    _F.TYPE_SFIXED64: _LONG,
    _F.TYPE_UINT64: {"type": "string", "pattern": "^[0-9]+$", "format": "uint64"},
    _F.TYPE_FIXED64: {"type": "string", "pattern": "^[0-9]+$", "format": "uint64"},
    _F.TYPE_INT32: {"type": "integer", "format": "int32"},
    _F.TYPE_SINT32: {"type": "integer", "format": "int32"},
    _F.TYPE_SFIXED32: {"type": "integer", "format": "int32"},
    _F.TYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    _F.TYPE_FIXED32: {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    _F.TYPE_BOOL: {"type": "boolean"},
    _F.TYPE_STRING: {"type": "string"},
    _F.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}
WELL_KNOWN: dict[str, Schema] = {
    ".google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    ".google.protobuf.Duration": {
        "type": "string",
        "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$",
        "examples": ["1.5s"],
    },
    ".google.protobuf.FieldMask": {"type": "string", "examples": ["name,labels"]},
    ".google.protobuf.Struct": {"type": "object"},
    ".google.protobuf.Value": {},
    ".google.protobuf.ListValue": {"type": "array"},
    ".google.protobuf.Empty": {"type": "object"},
    ".google.protobuf.Any": {"type": "object", "properties": {"@type": {"type": "string"}}},
}
"""Messages that have a form of their own in JSON."""


class Messages:
    """Makes schemas, each once.

    Attributes:
        schemas: Those of the messages and enums that were asked for, by their component's name.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self.schemas: dict[str, Schema] = {}

    def find(self, type_name: str) -> descriptor_pb2.DescriptorProto:
        """Returns a message by its name as fields write it, `.package.Message`."""
        return self._sources.messages[type_name[1:]]

    def comment(self, type_name: str, field: str) -> str:
        """Returns the comment of a field."""
        return self._sources.comments[f"{type_name[1:]}.{field}"]

    def reference(self, type_name: str) -> Schema:
        """Returns a schema that refers to a message's or an enum's."""
        if type_name in WELL_KNOWN:
            return dict(WELL_KNOWN[type_name])
        name = type_name[1:].removeprefix("infermesh.")
        if name not in self.schemas:
            self.schemas[name] = {}  # messages may hold each other
            is_enum = type_name[1:] in self._sources.enums
            self.schemas[name].update(self._enum(type_name) if is_enum else self.whole(type_name))
        return {"$ref": f"#/components/schemas/{name}"}

    def whole(self, type_name: str, without: Collection[str] = ()) -> Schema:
        """Returns a message's schema.

        Args:
            type_name: The message, `.package.Message`.
            without: Fields to leave out.
        """
        fields = [field for field in self.find(type_name).field if field.name not in without]
        schema: Schema = {
            "type": "object",
            "description": self._sources.comments[type_name[1:]],
            "properties": {field.name: self.field(type_name, field) for field in fields},
        }
        if required := [field.name for field in fields if is_required(field)]:
            schema["required"] = required
        return schema

    def field(self, type_name: str, field: descriptor_pb2.FieldDescriptorProto) -> Schema:
        """Returns a field's schema with its rules and its comment."""
        rules = rules_of(field)
        entry = self._map_entry(field)
        if entry is not None:
            value = next(each for each in entry.field if each.name == "value")
            schema: Schema = {
                "type": "object",
                "additionalProperties": apply_rules(self._one(value), rules.map.values),
            }
            if rules.map.HasField("max_pairs"):
                schema["maxProperties"] = rules.map.max_pairs
        elif field.label == _F.LABEL_REPEATED:
            schema = {
                "type": "array",
                "items": apply_rules(self._one(field), rules.repeated.items),
            }
            apply_rules(schema, rules)
        else:
            schema = apply_rules(self._one(field), rules)
        if comment := self.comment(type_name, field.name):
            schema["description"] = comment
        return schema

    def is_map(self, field: descriptor_pb2.FieldDescriptorProto) -> bool:
        """Says whether a field is a map."""
        return self._map_entry(field) is not None

    def _map_entry(
        self, field: descriptor_pb2.FieldDescriptorProto
    ) -> descriptor_pb2.DescriptorProto | None:
        if field.type != _F.TYPE_MESSAGE or field.type_name in WELL_KNOWN:
            return None
        found = self.find(field.type_name)
        return found if found.options.map_entry else None

    def _one(self, field: descriptor_pb2.FieldDescriptorProto) -> Schema:
        if field.type in (_F.TYPE_MESSAGE, _F.TYPE_ENUM):
            return self.reference(field.type_name)
        return dict(_SCALARS[field.type])

    def _enum(self, type_name: str) -> Schema:
        enum, comments = self._sources.enums[type_name[1:]], self._sources.comments
        lines = [comments[type_name[1:]], ""]
        lines += [f"* `{v.name}`: {comments[f'{type_name[1:]}.{v.name}']}" for v in enum.value]
        return {
            "type": "string",
            "description": "\n".join(lines),
            "enum": [value.name for value in enum.value],
        }
