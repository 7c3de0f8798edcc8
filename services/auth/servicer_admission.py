"""Serves `infermesh.auth.v1.AdmissionService`."""

from collections.abc import Mapping
from typing import Any

import grpc
from envoy.service.auth.v3 import attribute_context_pb2, external_auth_pb2

from infermesh.auth.v1 import admission_service_pb2 as pb
from infermesh.auth.v1 import admission_service_pb2_grpc
from services.auth import errors
from services.auth.access import ROLE_NAMES, Access
from services.auth.audit import Recorder
from services.auth.decision import Decider
from services.auth.keyring import Grant, Keyring
from services.auth.limits_gate import LimitGate
from services.auth.named_models import check_names
from services.kit import headers
from services.kit.errors import MeshError

_Context = grpc.aio.ServicerContext[Any, Any]


class AdmissionServicer(admission_service_pb2_grpc.AdmissionServiceServicer):
    """Decides about calls that services make for keys, by what decides about callers' own.

    Args:
        ring: The valid keys.
        table: The access of each RPC by its path.
        decider: Says what a call that may be made carries.
        recorder: Where refusals go, and the calls that the table says.
        gate: Holds calls against limits; None where nothing is limited.
    """

    def __init__(
        self,
        ring: Keyring,
        table: Mapping[str, Access],
        decider: Decider,
        recorder: Recorder,
        gate: LimitGate | None,
    ) -> None:
        self._ring = ring
        self._table = table
        self._decider = decider
        self._recorder = recorder
        self._gate = gate

    async def AdmitCall(
        self, request: pb.AdmitCallRequest, context: _Context
    ) -> pb.AdmitCallResponse:
        """Answers from memory, and from Redis for keys that have limits."""
        grant = self._ring.use(request.key_id)
        if grant is None:
            error = errors.invalid_api_key()
            self._recorder.denied(_attributes(request), error, None, (request.key_id, "", ""))
            raise error
        role = ROLE_NAMES[grant.role]
        identity = (grant.key_id, grant.tenant, role)
        try:
            reply = await self._admit(request, grant, role)
        except MeshError as error:
            # What is to be tried again is no refusal yet.
            if error.retry_after_s is None:
                self._recorder.denied(_attributes(request), error, None, identity)
            raise
        if self._table[request.rpc].audited >> grant.role & 1:
            self._recorder.called(_attributes(request), *identity, request.model, is_inference=True)
        allowed = external_auth_pb2.CheckResponse.FromString(reply).ok_response
        return pb.AdmitCallResponse(
            headers={each.header.key: each.header.value for each in allowed.headers}
        )

    async def _admit(self, request: pb.AdmitCallRequest, grant: Grant, role: str) -> bytes:
        access = self._table.get(request.rpc)
        if access is None or not access.names_model:
            raise errors.unknown_url("POST", request.rpc)
        if not access.roles >> grant.role & 1:
            raise errors.permission_denied(role)
        bounds = grant.bounds
        if bounds is not None and bounds.models is not None:
            check_names(request.fallback_models, bounds.models)
        reply = self._decider.allow(grant, role, request.model)
        if self._gate is None:
            return reply
        scopes = self._gate.book.of(grant.tenant, grant.project, grant.key_id, request.model)
        if not scopes:
            return reply
        reservation = self._gate.estimator.reserve(
            request.rpc, request.prompt_bytes, request.max_tokens, request.answer_count
        )
        return await self._gate.admit(request.request_id, request.model, scopes, reservation, reply)


def _attributes(request: pb.AdmitCallRequest) -> attribute_context_pb2.AttributeContext:
    """Returns what the audit log is told of a call: nobody connected, so that it has no source."""
    attributes = attribute_context_pb2.AttributeContext()
    attributes.request.http.path = request.rpc
    attributes.request.http.headers[headers.REQUEST_ID] = request.request_id
    return attributes
