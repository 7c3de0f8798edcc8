"""Writes down what each call took, before its caller gets the last of the answer."""

import time

from google.protobuf import duration_pb2, timestamp_pb2

from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2
from services.inference.engines.dialect import Tokens
from services.kit.caller import Caller
from services.kit.errors import MeshError
from services.kit.usage_spool import Spool

OPERATIONS = {
    "chat": usage_pb2.OPERATION_CHAT,
    "completion": usage_pb2.OPERATION_COMPLETION,
    "embedding": usage_pb2.OPERATION_EMBEDDING,
}


class Account:
    """What one call took so far.

    Args:
        spool: Where it goes; None for a call that is not accounted.
        event: What is known at the start.
    """

    def __init__(self, spool: Spool | None, event: usage_pb2.UsageEvent | None) -> None:
        self._spool = spool
        self._event = event
        self._began = time.monotonic_ns()
        self._first_content: int | None = None
        if spool is not None and event is not None:
            spool.begin(event)

    def note_content(self) -> None:
        """Notes that the first content is here."""
        if self._first_content is None:
            self._first_content = time.monotonic_ns()

    def succeed(self, tokens: Tokens) -> None:
        """Records an answer in full."""
        self._finish(usage_pb2.OUTCOME_OK, tokens)

    def cancel(self) -> None:
        """Records that the caller hung up. Does nothing when the end is recorded already.

        What the engine did by then is unknown: it says so at the end only.
        """
        self._finish(usage_pb2.OUTCOME_CANCELLED, Tokens())

    def fail(self, error: BaseException) -> None:
        """Records a failure. Does nothing when the end is recorded already."""
        is_fault_of_caller = isinstance(error, MeshError) and error.http_status < 500
        outcome = usage_pb2.OUTCOME_REJECTED if is_fault_of_caller else usage_pb2.OUTCOME_FAILED
        self._finish(outcome, Tokens())

    def _finish(self, outcome: "usage_pb2.Outcome.ValueType", tokens: Tokens) -> None:
        event = self._event
        if self._spool is None or event is None:
            return
        self._event = None
        event.outcome = outcome
        if tokens.prompt is not None:
            event.prompt_tokens = tokens.prompt
        if tokens.completion is not None:
            event.completion_tokens = tokens.completion
        if tokens.cached is not None:
            event.cached_tokens = tokens.cached
        if self._first_content is not None:
            event.time_to_first_token.CopyFrom(_duration(self._first_content - self._began))
        event.duration.CopyFrom(_duration(time.monotonic_ns() - self._began))
        self._spool.finish(event)


class Ledger:
    """Opens an account for each call.

    Args:
        spool: Where usage goes.
        node_id: The node that answers.
    """

    def __init__(self, spool: Spool, node_id: str) -> None:
        self._spool = spool
        self._node_id = node_id

    def open(self, caller: Caller, *, operation: str, model: str, is_stream: bool) -> Account:
        """Notes that a call is about to go to the engine."""
        if not caller.key_id:
            return Account(None, None)
        now = time.time_ns()
        event = usage_pb2.UsageEvent(
            request_id=caller.request_id,
            attempt=caller.attempt,
            tenant=caller.tenant,
            key_id=caller.key_id,
            model=model,
            node_id=self._node_id,
            operation=OPERATIONS[operation],
            streamed=is_stream,
            start_time=timestamp_pb2.Timestamp(
                seconds=now // 1_000_000_000, nanos=now % 1_000_000_000
            ),
        )
        return Account(self._spool, event)


def _duration(nanoseconds: int) -> duration_pb2.Duration:
    return duration_pb2.Duration(
        seconds=nanoseconds // 1_000_000_000, nanos=nanoseconds % 1_000_000_000
    )
