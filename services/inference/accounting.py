"""Writes down what each call took, before its caller gets the last of the answer."""

import time

from google.protobuf import duration_pb2, timestamp_pb2

from infermesh.errors.v1 import errors_pb2
from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2
from services.inference.answers import Answers
from services.inference.engines.dialect import Tokens
from services.kit.caller import Caller
from services.kit.errors import MeshError
from services.kit.usage_spool import Spool

OPERATIONS = {
    "chat": usage_pb2.OPERATION_CHAT,
    "completion": usage_pb2.OPERATION_COMPLETION,
    "embedding": usage_pb2.OPERATION_EMBEDDING,
    "rerank": usage_pb2.OPERATION_RERANK,
    "tokenize": usage_pb2.OPERATION_TOKENIZE,
}


class Account:
    """What one call took so far.

    Args:
        spool: Where it goes; None for a call that is not accounted.
        event: What is known at the start.
        began_ns: When the call came, on the monotonic clock.
        waited_ns: How long it waited for the engine to have room.
        answers: Where the node keeps how its answers went.
        expected_cached: Which share of the prompt routing expected in the cache; None is unknown.

    Attributes:
        began_ns: When the call came.
        waited_ns: How long it waited for the engine to have room.
        tokens: What the answer took, once it is complete.
    """

    def __init__(
        self,
        spool: Spool | None,
        event: usage_pb2.UsageEvent | None,
        *,
        began_ns: int,
        waited_ns: int,
        answers: Answers,
        expected_cached: float | None,
    ) -> None:
        self._spool = spool
        self._event = event
        self.began_ns = began_ns
        self.waited_ns = waited_ns
        self.tokens = Tokens()
        self._answers = answers
        self._expected_cached = expected_cached
        self._first_content: int | None = None
        if spool is not None and event is not None:
            spool.begin(event)

    def note_content(self) -> None:
        """Notes that the first content is here."""
        if self._first_content is None:
            self._first_content = time.monotonic_ns()

    def succeed(self, tokens: Tokens) -> None:
        """Records an answer in full."""
        self.tokens = tokens
        first = self._first_content
        self._answers.note(
            tokens,
            time_to_first_token_s=None if first is None else (first - self.began_ns) / 1e9,
            expected_share=self._expected_cached,
        )
        self._finish(usage_pb2.OUTCOME_OK, tokens)

    def reuse(self, made: Tokens) -> None:
        """Records an answer that was given before: the engine made nothing for it.

        All of the prompt counts as cached. The node's speeds and caches are not judged by it.

        Args:
            made: What the answer took when it was made.
        """
        self._finish(usage_pb2.OUTCOME_OK, Tokens(made.prompt, 0, made.prompt))

    def cancel(self) -> None:
        """Records that the caller hung up. Does nothing when the end is recorded already.

        What the engine did by then is unknown: it says so at the end only.
        """
        self._finish(usage_pb2.OUTCOME_CANCELLED, Tokens())

    def fail(self, error: BaseException) -> None:
        """Records a failure. Does nothing when the end is recorded already."""
        is_fault_of_caller = (
            isinstance(error, MeshError)
            and error.http_status < 500
            and error.reason != errors_pb2.ERROR_REASON_OVERLOADED
        )
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
            _set(event.time_to_first_token, self._first_content - self.began_ns)
        _set(event.duration, time.monotonic_ns() - self.began_ns)
        self._spool.finish(event)


class Ledger:
    """Opens an account for each call.

    Args:
        spool: Where usage goes.
        node_id: The node that answers.
        answers: Where the node keeps how its answers went.
    """

    def __init__(self, spool: Spool, node_id: str, answers: Answers) -> None:
        self._spool = spool
        self._node_id = node_id
        self._answers = answers

    def open(
        self,
        caller: Caller,
        *,
        operation: str,
        model: str,
        is_stream: bool,
        began_ns: int,
        waited_ns: int,
    ) -> Account:
        """Notes that a call is about to go to the engine.

        Args:
            caller: Who asks.
            operation: One of `OPERATIONS`.
            model: The model that answers.
            is_stream: Whether the caller asked for a stream.
            began_ns: When the call came, on the monotonic clock.
            waited_ns: How long it waited for the engine to have room.
        """
        if not caller.key_id:
            return Account(
                None,
                None,
                began_ns=began_ns,
                waited_ns=waited_ns,
                answers=self._answers,
                expected_cached=_expected(caller),
            )
        # When the call came, not when the engine had room for it.
        now = time.time_ns() - (time.monotonic_ns() - began_ns)
        event = usage_pb2.UsageEvent(
            request_id=caller.request_id,
            attempt=caller.attempt,
            tenant=caller.tenant,
            key_id=caller.key_id,
            model=model,
            node_id=self._node_id,
            operation=OPERATIONS[operation],
            streamed=is_stream,
        )
        _set(event.start_time, now)
        if caller.project:
            event.project = caller.project
        if caller.requested_model != model:
            event.requested_model = caller.requested_model
        if caller.reserved:
            event.reserved = True
        return Account(
            self._spool,
            event,
            began_ns=began_ns,
            waited_ns=waited_ns,
            answers=self._answers,
            expected_cached=_expected(caller),
        )


def _set(field: duration_pb2.Duration | timestamp_pb2.Timestamp, nanoseconds: int) -> None:
    # In place: to make a message and copy it takes several times as long.
    field.seconds, field.nanos = divmod(nanoseconds, 1_000_000_000)


def _expected(caller: Caller) -> float | None:
    # Routing speaks of the node that it put first.
    return caller.expected_cached if caller.attempt == 1 else None
