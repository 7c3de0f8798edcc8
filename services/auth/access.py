"""Who may call what, as the protos declare it (`infermesh/access/v1/access.proto`)."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from google.protobuf.descriptor import ServiceDescriptor

from buf.validate import validate_pb2
from infermesh.access.v1 import access_pb2
from infermesh.registry.v1 import resources_pb2


class Access(NamedTuple):
    """How one RPC may be called.

    Attributes:
        roles: One bit for each role that may, bit n for role number n.
        names_model: Whether its request names a model.
        audited: The roles whose calls are written down, as `roles`; see `audit_policy`.
    """

    roles: int
    names_model: bool
    audited: int = 0


ROLE_NAMES: Mapping[int, str] = {
    number: name.removeprefix("ROLE_").lower()
    for name, number in access_pb2.Role.items()
    if number != access_pb2.ROLE_UNSPECIFIED
}
"""The roles that a key can have, by number. Example: `{1: "user"}`."""

# Protocols of gRPC's own that the mesh serves and whose protos cannot declare roles.
_FOR_ANY_KEY = (
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


def build_table(services: Iterable[ServiceDescriptor]) -> Mapping[str, Access]:
    """Returns the access of every RPC that can be called, by its path `/package.Service/Method`.

    An RPC that declares no role, or the role `ROLE_UNSPECIFIED`, is left out.
    """
    any_role = sum(1 << role for role in ROLE_NAMES)
    table = dict.fromkeys(_FOR_ANY_KEY, Access(any_role, names_model=False))
    for service in services:
        for method in service.methods:
            extensions = method.GetOptions().Extensions
            roles = set(extensions[access_pb2.allowed_roles])
            if roles and access_pb2.ROLE_UNSPECIFIED not in roles:
                table[f"/{service.full_name}/{method.name}"] = Access(
                    sum(1 << role for role in roles), extensions[access_pb2.names_model]
                )
    return table


class ModelNames:
    """The grammar of model names, read from the rules of `ServedModel.name`."""

    def __init__(self) -> None:
        field = resources_pb2.ServedModel.DESCRIPTOR.fields_by_name["name"]
        rules = field.GetOptions().Extensions[validate_pb2.field].string
        # `\Z`, because Python's `$` lets a line break follow.
        self._pattern = re.compile(rules.pattern.removesuffix("$") + r"\Z")
        self._max_length: int = rules.max_len

    def __contains__(self, name: str) -> bool:
        return len(name) <= self._max_length and self._pattern.match(name) is not None
