"""How `infermesh keys` says whether a key gets earlier answers."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from infermesh.auth.v1 import key_service_pb2


class CachingName(StrEnum):
    """When a key gets earlier answers, as a person types it."""

    CALL = "call"
    OFF = "off"
    ON = "on"


Caching = Annotated[
    CachingName | None,
    typer.Option(
        "--caching",
        help="Earlier answers: as the call says, never, or also unasked at temperature 0.",
    ),
]


def set_caching(rules: "key_service_pb2.KeyRules", caching: CachingName | None) -> None:
    """Sets what was named; None leaves the rules as they are."""
    from infermesh.auth.v1 import key_service_pb2

    if caching is CachingName.CALL:
        rules.ClearField("caching")
    elif caching is not None:
        rules.caching = key_service_pb2.Caching.Value(f"CACHING_{caching.name}")


def facts(rules: "key_service_pb2.KeyRules") -> list[tuple[str, str]]:
    """Returns what there is to show of a key's caching."""
    from infermesh.auth.v1 import key_service_pb2

    if not rules.caching:
        return []
    word = key_service_pb2.Caching.Name(rules.caching).removeprefix("CACHING_").lower()
    return [("caching", word)]
