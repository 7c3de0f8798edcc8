"""How the node comes by its key: it was given one, or exchanges a join token for one."""

import asyncio
import hashlib
import logging
import os
from pathlib import Path

import grpc

from infermesh.auth.v1 import join_token_service_pb2 as pb
from infermesh.auth.v1 import join_token_service_pb2_grpc

log = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
_RETRY_S = 1.0
REFUSALS = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""What is refused now is refused later too."""


async def enrol(channel: grpc.aio.Channel, token: str, node_id: str, key_file: Path) -> str:
    """Returns the key that the node has for its token, kept from an earlier start or new.

    While the mesh is away it asks again every second.

    Args:
        channel: The way to the mesh.
        token: The join token.
        node_id: The node's name.
        key_file: Keeps the key, beside a hash of the token that it was got for.

    Raises:
        SystemExit: Status 1: the mesh refuses the token.
        OSError: The key cannot be kept.
    """
    mark = hashlib.sha256(token.encode()).hexdigest()[:16]
    kept = _read(key_file, mark)
    if kept:
        return kept
    stub = join_token_service_pb2_grpc.JoinTokenServiceStub(channel)
    metadata = (("authorization", f"Bearer {token}"),)
    has_told = False
    while True:
        try:
            got = await stub.RedeemJoinToken(
                pb.RedeemJoinTokenRequest(node_id=node_id), metadata=metadata, timeout=_TIMEOUT_S
            )
            break
        except grpc.aio.AioRpcError as error:
            if error.code() in REFUSALS:
                raise SystemExit(f"The mesh refuses the join token: {error.details()}") from None
            if not has_told:
                log.warning("the mesh does not answer yet", extra={"error": error.details()})
            has_told = True
        await asyncio.sleep(_RETRY_S)
    _write(key_file, f"{mark} {got.secret}\n")
    log.info("the node has its key", extra={"key_id": got.key_id})
    return str(got.secret)


def _read(key_file: Path, mark: str) -> str:
    try:
        found, _, key = key_file.read_text().strip().partition(" ")
    except FileNotFoundError:
        return ""
    # Another token is given because the key of the last one is no good any more.
    return key if found == mark else ""


def _write(key_file: Path, text: str) -> None:
    """Writes the file with mode 0600; it is there whole or not at all."""
    new = key_file.with_suffix(".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(key_file)
