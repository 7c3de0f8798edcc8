import asyncio

import pytest

from infermesh.errors.v1 import errors_pb2
from infermesh.metrics.v1 import usage_service_pb2 as pb
from services.embeddings.accounting import Accounting
from services.embeddings.vectors import Vector
from services.kit.caller import Caller
from services.kit.errors import MeshError

CALLER = Caller("r", 2, "acme", "k", "m")


class _Spool:
    def __init__(self) -> None:
        self.begun: list[pb.UsageEvent] = []
        self.finished: list[pb.UsageEvent] = []

    def begin(self, event: pb.UsageEvent) -> None:
        self.begun.append(pb.UsageEvent.FromString(event.SerializeToString()))

    def finish(self, event: pb.UsageEvent) -> None:
        self.finished.append(pb.UsageEvent.FromString(event.SerializeToString()))


def _clock() -> int:
    _clock.now += 1_000_000  # type: ignore[attr-defined]
    return _clock.now  # type: ignore[attr-defined, no-any-return]


_clock.now = 5_000_000_000  # type: ignore[attr-defined]


def test_an_answered_request() -> None:
    spool = _Spool()
    with Accounting(spool, _clock).account(CALLER) as account:
        assert len(spool.begun) == 1
        assert spool.begun[0].outcome == 0
        account.set_vectors([Vector(b"", 3), Vector(b"", 4, cached=True)])
    (event,) = spool.finished
    assert (event.request_id, event.attempt, event.tenant, event.key_id) == ("r", 2, "acme", "k")
    assert (event.model, event.node_id) == ("m", "embeddings")
    assert (event.prompt_tokens, event.completion_tokens, event.cached_tokens) == (7, 0, 4)
    assert (event.operation, event.outcome) == (pb.OPERATION_EMBEDDING, pb.OUTCOME_OK)
    assert event.duration.ToMilliseconds() == 1
    assert not event.HasField("time_to_first_token")
    assert (event.project, event.requested_model, event.reserved) == ("", "", False)


def test_what_the_limits_of_a_caller_go_by() -> None:
    spool = _Spool()
    with Accounting(spool, _clock).account(
        CALLER._replace(requested_model="asked", project="web", reserved=True)
    ) as account:
        account.set_model("answering")
    assert (spool.begun[0].project, spool.begun[0].reserved) == ("web", True)
    (event,) = spool.finished
    assert (event.model, event.requested_model) == ("answering", "asked")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (MeshError(errors_pb2.ERROR_REASON_INPUT_TOO_LONG, ""), pb.OUTCOME_REJECTED),
        (MeshError(errors_pb2.ERROR_REASON_MODEL_NOT_FOUND, ""), pb.OUTCOME_REJECTED),
        (MeshError(errors_pb2.ERROR_REASON_NO_NODE_AVAILABLE, ""), pb.OUTCOME_FAILED),
        (RuntimeError(), pb.OUTCOME_FAILED),
        (asyncio.CancelledError(), pb.OUTCOME_CANCELLED),
    ],
)
def test_every_end_is_recorded_with_tokens_unknown(error: BaseException, outcome: int) -> None:
    spool = _Spool()
    with pytest.raises(type(error)), Accounting(spool, _clock).account(CALLER):
        raise error
    (event,) = spool.finished
    assert event.outcome == outcome
    assert not event.HasField("prompt_tokens")


def test_a_call_from_inside_the_mesh_is_not_accounted() -> None:
    spool = _Spool()
    with Accounting(spool, _clock).account(CALLER._replace(key_id="")):
        pass
    assert spool.begun == spool.finished == []
