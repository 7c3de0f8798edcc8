"""Finds descriptors by name, and the comments that stand before them."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from google.protobuf import descriptor_pb2

_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE = 4, 5, 6
_MESSAGE_FIELD, _MESSAGE_NESTED, _MESSAGE_ENUM = 2, 3, 4
_ENUM_VALUE, _SERVICE_METHOD = 2, 2


class Method(NamedTuple):
    """An RPC: its service's full name and comment, and its own descriptor and comment."""

    service: str
    service_comment: str
    method: descriptor_pb2.MethodDescriptorProto
    comment: str


class Sources:
    """The contracts of a descriptor set with source info.

    Attributes:
        messages: By full name.
        enums: By full name.
        comments: By the full name of a message, an enum, a value or a field.
    """

    def __init__(self, descriptors: descriptor_pb2.FileDescriptorSet) -> None:
        self._files = list(descriptors.file)
        self.messages: dict[str, descriptor_pb2.DescriptorProto] = {}
        self.enums: dict[str, descriptor_pb2.EnumDescriptorProto] = {}
        self.comments: dict[str, str] = {}
        for file in self._files:
            said = _comments(file)
            for index, message in enumerate(file.message_type):
                self._add(file.package, message, (_FILE_MESSAGE, index), said)
            for index, enum in enumerate(file.enum_type):
                self._add_enum(file.package, enum, (_FILE_ENUM, index), said)

    def methods(self) -> Iterator[Method]:
        """Gives all RPCs of the mesh."""
        for file in self._files:
            if not file.package.startswith("infermesh."):
                continue
            said = _comments(file)
            for number, service in enumerate(file.service):
                path = (_FILE_SERVICE, number)
                for index, method in enumerate(service.method):
                    yield Method(
                        f"{file.package}.{service.name}",
                        said.get(path, ""),
                        method,
                        said.get((*path, _SERVICE_METHOD, index), ""),
                    )

    def _add(
        self,
        scope: str,
        message: descriptor_pb2.DescriptorProto,
        path: tuple[int, ...],
        said: dict[tuple[int, ...], str],
    ) -> None:
        name = f"{scope}.{message.name}"
        self.messages[name] = message
        self.comments[name] = said.get(path, "")
        for index, field in enumerate(message.field):
            place = (*path, _MESSAGE_FIELD, index)
            self.comments[f"{name}.{field.name}"] = said.get(place, "")
        for index, nested in enumerate(message.nested_type):
            self._add(name, nested, (*path, _MESSAGE_NESTED, index), said)
        for index, enum in enumerate(message.enum_type):
            self._add_enum(name, enum, (*path, _MESSAGE_ENUM, index), said)

    def _add_enum(
        self,
        scope: str,
        enum: descriptor_pb2.EnumDescriptorProto,
        path: tuple[int, ...],
        said: dict[tuple[int, ...], str],
    ) -> None:
        name = f"{scope}.{enum.name}"
        self.enums[name] = enum
        self.comments[name] = said.get(path, "")
        for index, value in enumerate(enum.value):
            self.comments[f"{name}.{value.name}"] = said.get((*path, _ENUM_VALUE, index), "")


def _comments(file: descriptor_pb2.FileDescriptorProto) -> dict[tuple[int, ...], str]:
    return {
        tuple(place.path): _paragraphs(place.leading_comments)
        for place in file.source_code_info.location
        if place.leading_comments
    }


def _paragraphs(comment: str) -> str:
    """Returns a comment with its lines joined, but for paragraphs and what is indented."""
    lines = [line.removeprefix(" ").rstrip() for line in comment.strip("\n").split("\n")]
    return re.sub(r"(?<=\S)\n(?=[^\s])", " ", "\n".join(lines)).strip()
