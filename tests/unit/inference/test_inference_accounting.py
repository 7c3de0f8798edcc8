import pytest

from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2
from services.inference import errors
from services.inference.accounting import Ledger
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


def open_account(spool, metadata=METADATA):
    caller = caller_of(metadata)
    return Ledger(spool, "n").open(caller, operation="chat", model="m", is_stream=True)


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
    assert event.duration.ToNanoseconds() >= event.time_to_first_token.ToNanoseconds()


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
