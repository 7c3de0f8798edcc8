import time

import pytest

from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2
from services.inference import errors
from services.inference.accounting import Ledger
from services.inference.answers import Answers
from services.inference.engines.dialect import Tokens
from services.kit.caller import caller_of

METADATA = (
    ("x-request-id", "r-1"),
    ("x-envoy-attempt-count", "2"),
    ("x-mesh-key-id", "k"),
    ("x-mesh-tenant", "t"),
    ("x-mesh-model", "m"),
)


class Spool:
    def __init__(self):
        self.begun = []
        self.finished = []

    def begin(self, event):
        self.begun.append(event.SerializeToString())

    def finish(self, event):
        self.finished.append(usage_pb2.UsageEvent.FromString(event.SerializeToString()))


@pytest.fixture
def spool():
    return Spool()


def open_account(spool, metadata=METADATA, *, answers=None, began_ns=None, waited_ns=0):
    return Ledger(spool, "n", answers or Answers()).open(
        caller_of(metadata),
        operation="chat",
        model="m",
        is_stream=True,
        began_ns=time.monotonic_ns() if began_ns is None else began_ns,
        waited_ns=waited_ns,
    )


def test_an_answer_in_full(spool):
    account = open_account(spool)
    assert len(spool.begun) == 1
    account.note_content()
    account.succeed(Tokens(prompt=3, completion=2))
    event = spool.finished[0]
    assert (event.request_id, event.attempt, event.key_id, event.tenant) == ("r-1", 2, "k", "t")
    assert (event.model, event.node_id, event.streamed) == ("m", "n", True)
    assert (event.operation, event.outcome) == (usage_pb2.OPERATION_CHAT, usage_pb2.OUTCOME_OK)
    assert (event.prompt_tokens, event.completion_tokens) == (3, 2)
    assert not event.HasField("cached_tokens")
    assert event.HasField("time_to_first_token")
    assert (event.project, event.requested_model, event.reserved) == ("", "", False)
    assert event.duration.ToNanoseconds() >= event.time_to_first_token.ToNanoseconds()


def test_what_the_limits_of_a_caller_go_by(spool):
    metadata = (
        *METADATA,
        ("x-mesh-requested-model", "alias"),
        ("x-mesh-project", "web"),
        ("x-mesh-reserved", "1"),
    )
    open_account(spool, metadata)
    # What a node that dies leaves says it too.
    event = usage_pb2.UsageEvent.FromString(spool.begun[0])
    assert (event.model, event.requested_model) == ("m", "alias")
    assert (event.project, event.reserved) == ("web", True)


def test_the_first_end_counts(spool):
    account = open_account(spool)
    account.succeed(Tokens())
    account.cancel()
    account.fail(RuntimeError())
    assert [event.outcome for event in spool.finished] == [usage_pb2.OUTCOME_OK]
    assert not spool.finished[0].HasField("prompt_tokens")
    assert not spool.finished[0].HasField("time_to_first_token")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (errors.invalid("n", "no"), usage_pb2.OUTCOME_REJECTED),
        (errors.from_response(422, b"{}"), usage_pb2.OUTCOME_REJECTED),
        (errors.from_response(429, b"{}"), usage_pb2.OUTCOME_FAILED),
        (errors.from_response(500, b"{}"), usage_pb2.OUTCOME_FAILED),
        (errors.unavailable("no"), usage_pb2.OUTCOME_FAILED),
        (RuntimeError(), usage_pb2.OUTCOME_FAILED),
    ],
)
def test_whose_fault_it_was(spool, error, outcome):
    open_account(spool).fail(error)
    assert spool.finished[0].outcome == outcome


def test_a_hang_up(spool):
    open_account(spool).cancel()
    assert spool.finished[0].outcome == usage_pb2.OUTCOME_CANCELLED


def test_calls_from_inside_are_not_accounted(spool):
    account = open_account(spool, (("x-request-id", "r"),))
    account.succeed(Tokens(prompt=1))
    assert spool.begun == spool.finished == []


def test_the_wait_for_the_engine_counts(spool):
    waited_ns = 2 * 10**9
    account = open_account(spool, began_ns=time.monotonic_ns() - waited_ns, waited_ns=waited_ns)
    account.note_content()
    account.succeed(Tokens())
    event = spool.finished[0]
    assert event.time_to_first_token.ToNanoseconds() >= 2 * 10**9
    assert event.duration.ToNanoseconds() >= 2 * 10**9
    assert time.time_ns() - event.start_time.ToNanoseconds() >= 2 * 10**9


@pytest.mark.parametrize("metadata", [METADATA, METADATA[:1]])
def test_the_node_learns_from_every_answer(spool, metadata):
    answers = Answers()
    first = tuple(pair for pair in metadata if pair[0] != "x-envoy-attempt-count")
    expecting = (*first, ("x-mesh-expected-cached", "0.50"))
    account = open_account(spool, expecting, answers=answers, began_ns=time.monotonic_ns() - 10**9)
    account.note_content()
    account.succeed(Tokens(prompt=100, completion=7, cached=40))
    assert (answers.expected_cached_tokens, answers.cached_tokens) == (50, 40)
    assert answers.prompt_tokens == 100
    assert answers.time_to_first_token_s >= 1
    assert account.tokens.cached == 40


def test_what_routing_expected_of_the_first_node_is_not_held_against_the_second(spool):
    answers = Answers()
    metadata = (("x-envoy-attempt-count", "2"), ("x-mesh-expected-cached", "0.50"))
    account = open_account(spool, (*METADATA[:1], *metadata), answers=answers)
    account.succeed(Tokens(prompt=100, completion=7, cached=0))
    assert answers.expected_cached_tokens is None


def test_what_was_cut_off_teaches_nothing(spool):
    answers = Answers()
    for end in (lambda a: a.cancel(), lambda a: a.fail(RuntimeError())):
        account = open_account(spool, answers=answers)
        account.note_content()
        end(account)
    assert answers.time_to_first_token_s is None
    assert answers.prompt_tokens is None
