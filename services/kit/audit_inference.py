"""Tells the audit log what was asked of a model, where auth wants to know it."""

from collections.abc import Mapping
from typing import Any

import orjson

from infermesh.auth.v1 import audit_service_pb2 as pb
from services.kit.audit_bodies import redacted
from services.kit.audit_events import OutcomeRecorder, clean
from services.kit.caller import Caller


class InferenceAudit:
    """Makes events of inference requests. One that cannot be kept stops no request.

    Args:
        recorder: Where the events go.
        where: Who answers: a node's id, or a service's name.
    """

    def __init__(self, recorder: OutcomeRecorder, where: str) -> None:
        self._recorder = recorder
        self._where = where

    def note(self, caller: Caller, operation: str, model: str, fields: Mapping[str, Any]) -> None:
        """Writes down what is asked, before it is answered.

        Args:
            caller: Who asks.
            operation: `chat`, `completion` or `embedding`.
            model: The model that answers.
            fields: The request's JSON.
        """
        event = self._recorder.event(pb.AUDIT_KIND_INFERENCE)
        event.key_id, event.tenant = clean(caller.key_id), clean(caller.tenant)
        event.request_id, event.resource = clean(caller.request_id), clean(model, 300)
        event.after = orjson.dumps(
            {
                "node": self._where,
                "attempt": caller.attempt,
                "operation": operation,
                "request": orjson.Fragment(redacted(fields)),
            }
        ).decode()
        self._recorder.keep(event, must=False)
