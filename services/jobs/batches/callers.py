"""Finds out what a batch's key may do now: a batch outlives the call that made it.

Nothing of this is believed for longer than two seconds, and where auth does not answer no line
begins.
"""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

import grpc

from infermesh.access.v1 import access_pb2
from infermesh.auth.v1 import key_service_pb2 as key_pb
from infermesh.auth.v1 import key_service_pb2_grpc, limit_service_pb2_grpc
from infermesh.auth.v1 import limit_service_pb2 as limit_pb
from infermesh.errors.v1 import errors_pb2
from services.jobs.identity import DEFAULT_PROJECT, Pairs
from services.kit import headers
from services.kit.errors import MeshError, from_rpc_error
from services.kit.globs import ModelGlobs
from services.kit.guardrails import header

_R = errors_pb2.ErrorReason
_FRESH_S = 2.0
_KEPT = 4096
_TIMEOUT_S = 5.0
_FULL_S = 5.0
_MAY = {access_pb2.ROLE_USER: "user", access_pb2.ROLE_ADMIN: "admin"}


class Permit(NamedTuple):
    """What a key may do.

    Args:
        key_id: The key.
        tenant: Its tenant.
        project: Its project.
        models: The models that it may use.
        identity: What is said to the node.
    """

    key_id: str
    tenant: str
    project: str
    models: ModelGlobs
    identity: Pairs


class NotNowError(Exception):
    """A line must wait.

    Args:
        wait_s: For how many seconds at least.
    """

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"wait {wait_s} s")
        self.wait_s = wait_s


class Callers:
    """Asks auth about keys and their limits.

    Args:
        channel: To auth.
        clock: Monotonic, in seconds.
    """

    def __init__(
        self, channel: grpc.aio.Channel, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keys = key_service_pb2_grpc.KeyServiceStub(channel)
        self._limits = limit_service_pb2_grpc.LimitServiceStub(channel)
        self._clock = clock
        self._permits: dict[str, tuple[float, Permit]] = {}
        self._room: dict[tuple[str, str], tuple[float, float | None, bool]] = {}

    async def permit(self, key_id: str) -> Permit:
        """Returns what a key may do now.

        Raises:
            MeshError: `INVALID_API_KEY` or `PERMISSION_DENIED`: it may do nothing any more.
            NotNowError: Auth does not answer.
        """
        now = self._clock()
        known = self._permits.get(key_id)
        if known is not None and known[0] > now:
            return known[1]
        request = key_pb.GetKeyRequest(key_id=key_id)
        try:
            key = await self._keys.GetKey(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            said = from_rpc_error(error)
            if said is not None and said.reason == _R.ERROR_REASON_NOT_FOUND:
                raise _no_key() from None
            raise NotNowError(_FULL_S) from None
        permit = _permit_of(key)
        if len(self._permits) >= _KEPT:
            self._permits.clear()
        self._permits[key_id] = (now + _FRESH_S, permit)
        return permit

    async def check_room(self, permit: Permit, model: str) -> bool:
        """Returns whether a line's call has limits; returns at all only while all have room.

        What is left is not reserved: calls that begin at the same time may together take more.

        Raises:
            NotNowError: A limit is used up, or nobody knows.
        """
        now = self._clock()
        place = (permit.key_id, model)
        known = self._room.get(place)
        if known is None or known[0] <= now:
            if len(self._room) >= _KEPT:
                self._room.clear()
            wait_s, is_limited = await self._ask(permit, model)
            known = self._room[place] = (now + _FRESH_S, wait_s, is_limited)
        if known[1] is not None:
            raise NotNowError(known[1])
        return known[2]

    async def _ask(self, permit: Permit, model: str) -> tuple[float | None, bool]:
        """Returns for how long there is no room, None where there is, and whether limits apply."""
        is_limited = False
        wait_s: float | None = None
        for scope in (
            limit_pb.LimitScope(tenant=permit.tenant),
            limit_pb.LimitScope(tenant=permit.tenant, project=permit.project),
            limit_pb.LimitScope(key_id=permit.key_id),
            limit_pb.LimitScope(key_id=permit.key_id, model=model),
        ):
            request = limit_pb.GetLimitStateRequest(scope=scope)
            try:
                state = await self._limits.GetLimitState(request, timeout=_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                said = from_rpc_error(error)
                if said is not None and said.reason == _R.ERROR_REASON_NOT_FOUND:
                    continue
                raise NotNowError(_FULL_S) from None
            is_limited = True
            for use in state.uses:
                if Decimal(use.used) >= Decimal(use.allowed):
                    wait_s = max(wait_s or 0.0, min(_FULL_S, _reset_s(use)))
        return wait_s, is_limited


def _reset_s(use: limit_pb.LimitUse) -> float:
    if not use.HasField("reset_after"):
        return _FRESH_S
    return max(_FRESH_S, use.reset_after.ToNanoseconds() / 1e9)


def _permit_of(key: key_pb.Key) -> Permit:
    role = _MAY.get(key.role)
    is_over = key.HasField("expire_time") and key.expire_time.ToDatetime(UTC) <= datetime.now(UTC)
    if key.HasField("revoke_time") or is_over:
        raise _no_key()
    if role is None:
        raise MeshError(
            _R.ERROR_REASON_PERMISSION_DENIED, "The batch's key may not call inference any more."
        )
    rules = key.rules
    models = ModelGlobs(rules.allowed_models, rules.denied_models)
    return Permit(
        key.key_id,
        key.tenant,
        key.project or DEFAULT_PROJECT,
        models,
        tuple(_identity(key, role, models)),
    )


def _identity(key: key_pb.Key, role: str, models: ModelGlobs) -> Iterable[tuple[str, str]]:
    """Yields what auth would say of a call of the key's."""
    yield headers.KEY_ID, key.key_id
    yield headers.TENANT, key.tenant
    yield headers.ROLE, role
    if key.project and key.project != DEFAULT_PROJECT:
        yield headers.PROJECT, key.project
    if models.text:
        yield headers.ALLOWED_MODELS, models.text
    if guardrails := header.write(key.rules.guardrails):
        yield headers.GUARDRAILS, guardrails


def _no_key() -> MeshError:
    return MeshError(
        _R.ERROR_REASON_INVALID_API_KEY, "The batch's key is unknown, revoked or expired."
    )
