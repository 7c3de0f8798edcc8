"""The refusals of the jobs service."""

from typing import NoReturn

from infermesh.errors.v1 import errors_pb2
from services.kit.errors import MeshError

_R = errors_pb2.ErrorReason
_MAX_ID_CHARS = 64


def invalid(param: str | None, message: str) -> MeshError:
    """Returns the error for a field that is missing or wrong."""
    text = f"{param}: {message}" if param else message
    return MeshError(_R.ERROR_REASON_INVALID_ARGUMENT, text, param=param)


def unsupported(param: str, message: str) -> MeshError:
    """Returns the error for what the mesh has no way to do."""
    return MeshError(_R.ERROR_REASON_UNSUPPORTED, f"{param}: {message}", param=param)


def refuse(param: str | None, message: str) -> NoReturn:
    """Raises `invalid`."""
    raise invalid(param, message)


def check_id(kind: str, name: str, param: str) -> None:
    """Raises `not_found` for an id that none can have; PostgreSQL takes no NUL."""
    if not (name.isascii() and name.isprintable()):
        raise not_found(kind, "?", param)


def not_found(kind: str, name: str, param: str | None = None) -> MeshError:
    """Returns the error for what is not there, or not the caller's.

    Args:
        kind: What it would be. Example: `response`.
        name: Its id.
        param: The field that names it.
    """
    return MeshError(
        _R.ERROR_REASON_NOT_FOUND,
        f"There is no {kind} `{name[:_MAX_ID_CHARS]}`: it is unknown, deleted or expired.",
        param=param,
    )
