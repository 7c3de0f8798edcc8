import datetime as dt
from decimal import Decimal

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from infermesh.metrics.v1 import usage_service_pb2 as pb
from services.kit.errors import MeshError
from services.metrics import convert


def _event(**changed: object) -> pb.UsageEvent:
    fields: dict[str, object] = {
        "request_id": "r",
        "attempt": 1,
        "outcome": pb.OUTCOME_OK,
        "operation": pb.OPERATION_EMBEDDING,
        "start_time": Timestamp(seconds=1_700_000_000, nanos=123_456_000),
    }
    return pb.UsageEvent(**{**fields, **changed})  # type: ignore[arg-type]


def test_an_event_comes_back_as_it_was() -> None:
    full = _event(
        tenant="acme",
        project="web",
        requested_model="alias",
        reserved=True,
        key_id="k",
        model="m",
        node_id="n",
        streamed=True,
        prompt_tokens=0,
        completion_tokens=2,
        cached_tokens=1,
        time_to_first_token=Duration(nanos=5000),
        duration=Duration(seconds=3, nanos=7000),
    )
    for event in (full, _event(model="m", requested_model="m", project="default")):
        assert convert.usage_to_proto(convert.usage_from_proto(event, 0)) == event


def test_what_is_left_out_is_told_as_what_it_stands_for() -> None:
    told = convert.usage_to_proto(convert.usage_from_proto(_event(model="m"), 0))
    assert (told.project, told.requested_model) == ("default", "m")


def test_a_cost_is_told_in_plain_digits_and_an_unknown_one_not_at_all() -> None:
    usage = convert.usage_from_proto(_event(cost_usd="77"), 0)
    assert usage.cost is None
    assert not convert.usage_to_proto(usage).HasField("cost_usd")
    told = convert.usage_to_proto(usage._replace(cost=Decimal("0.000000150000")))
    assert told.cost_usd == "0.00000015"
    assert convert.usage_to_proto(usage._replace(cost=Decimal("0E-12"))).cost_usd == "0"


def test_unset_is_none_and_0_is_0() -> None:
    usage = convert.usage_from_proto(_event(prompt_tokens=0), 0)
    assert usage.prompt_tokens == 0
    assert usage.completion_tokens is None
    assert usage.duration_us is None


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"model": "a\0b"}, "events[7].model"),
        ({"start_time": Timestamp(seconds=10**15)}, "events[7].start_time"),
        ({"duration": Duration(seconds=-1)}, "events[7].duration"),
        ({"time_to_first_token": Duration(seconds=2**60)}, "events[7].time_to_first_token"),
    ],
)
def test_what_the_ledger_cannot_hold_is_the_senders_fault(
    changed: dict[str, object], param: str
) -> None:
    with pytest.raises(MeshError) as caught:
        convert.usage_from_proto(_event(**changed), 7)
    assert caught.value.reason_name == "INVALID_ARGUMENT"
    assert caught.value.param == param


def test_a_page_token_names_the_last_event() -> None:
    usage = convert.usage_from_proto(_event(request_id="a:ä"), 0)
    assert convert.page_start(convert.page_token(usage)) == (usage.start_time, "a:ä")
    assert usage.start_time == dt.datetime(2023, 11, 14, 22, 13, 20, 123_456, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    "token", ["x", "!!!!", "bm9wZQ==", "MTo=", "OTk5OTk5OTk5OTk5OTk5OTk5OTk6YQ==", "ä"]
)
def test_a_token_of_ones_own_is_refused(token: str) -> None:
    with pytest.raises(MeshError) as caught:
        convert.page_start(token)
    assert caught.value.param == "page_token"
