"""Usage events and page tokens between their wire form and the domain's."""

import base64
import binascii
import datetime as dt

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from infermesh.errors.v1 import errors_pb2
from infermesh.metrics.v1 import usage_service_pb2
from services.kit.errors import MeshError
from services.metrics.decimals import to_text
from services.metrics.usage import DEFAULT_PROJECT, Usage

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_TEXTS = ("request_id", "tenant", "project", "key_id", "model", "requested_model", "node_id")


def usage_from_proto(event: usage_service_pb2.UsageEvent, index: int) -> Usage:
    """Returns the event with times in microseconds; what is finer is cut off.

    Raises:
        MeshError: `INVALID_ARGUMENT`; something in the event cannot be kept in the ledger.
    """
    texts = [getattr(event, name) for name in _TEXTS]
    if "\0" in "".join(texts):
        for name, value in zip(_TEXTS, texts, strict=True):
            text(value, f"events[{index}].{name}")
    request_id, tenant, project, key_id, model, requested_model, node_id = texts
    return Usage(
        request_id=request_id,
        tenant=tenant,
        project=project or DEFAULT_PROJECT,
        key_id=key_id,
        model=model,
        requested_model=requested_model,
        node_id=node_id,
        attempt=event.attempt,
        operation=event.operation,
        streamed=event.streamed,
        outcome=event.outcome,
        prompt_tokens=event.prompt_tokens if event.HasField("prompt_tokens") else None,
        completion_tokens=event.completion_tokens if event.HasField("completion_tokens") else None,
        cached_tokens=event.cached_tokens if event.HasField("cached_tokens") else None,
        start_time=time_from_proto(event.start_time, "events[{}].start_time", index),
        time_to_first_token_us=(
            _microseconds(event.time_to_first_token, "events[{}].time_to_first_token", index)
            if event.HasField("time_to_first_token")
            else None
        ),
        duration_us=(
            _microseconds(event.duration, "events[{}].duration", index)
            if event.HasField("duration")
            else None
        ),
        reserved=event.reserved,
    )


def usage_to_proto(usage: Usage) -> usage_service_pb2.UsageEvent:
    """Returns the wire form of a row of the ledger."""
    event = usage_service_pb2.UsageEvent(
        request_id=usage.request_id,
        attempt=usage.attempt,
        tenant=usage.tenant,
        key_id=usage.key_id,
        model=usage.model,
        node_id=usage.node_id,
        operation=usage_service_pb2.Operation.Name(usage.operation),  # type: ignore[arg-type]
        streamed=usage.streamed,
        outcome=usage_service_pb2.Outcome.Name(usage.outcome),  # type: ignore[arg-type]
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        start_time=timestamp(usage.start_time),
        project=usage.project,
        requested_model=usage.requested_model or usage.model,
        cost_usd=None if usage.cost is None else to_text(usage.cost),
        reserved=usage.reserved,
    )
    if usage.time_to_first_token_us is not None:
        event.time_to_first_token.CopyFrom(_duration(usage.time_to_first_token_us))
    if usage.duration_us is not None:
        event.duration.CopyFrom(_duration(usage.duration_us))
    return event


def text(value: str, field: str) -> str:
    """Returns the text when PostgreSQL can hold it.

    Raises:
        MeshError: `INVALID_ARGUMENT`; it holds NUL characters.
    """
    if "\0" in value:
        raise _invalid(field, "must not hold NUL characters")
    return value


def time_from_proto(time: Timestamp, field: str, index: int = 0) -> dt.datetime:
    """Returns the time in UTC; what is finer than microseconds is cut off.

    Args:
        time: The time.
        field: Where it stands, with `{}` for the index.
        index: Which of several it is.

    Raises:
        MeshError: `INVALID_ARGUMENT`; it is no time between the years 1 and 9999.
    """
    nanos = time.nanos
    if 0 <= nanos < 1_000_000_000:
        try:
            # `Timestamp.ToDatetime` takes four times as long.
            return _EPOCH + dt.timedelta(seconds=time.seconds, microseconds=nanos // 1000)
        except OverflowError:
            pass
    raise _invalid(field.format(index), "is not a time between the years 1 and 9999")


def timestamp(time: dt.datetime) -> Timestamp:
    """Returns the wire form of a time."""
    result = Timestamp()
    result.FromDatetime(time)
    return result


def page_token(last: Usage) -> str:
    """Returns the token of the page that starts after `last`."""
    start_us = timestamp(last.start_time).ToMicroseconds()
    return base64.urlsafe_b64encode(f"{start_us}:{last.request_id}".encode()).decode()


def page_start(token: str) -> tuple[dt.datetime, str]:
    """Returns start time and id of the last event of the page before.

    Raises:
        MeshError: `INVALID_ARGUMENT`; the token is not one that `page_token` made.
    """
    try:
        text = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
        start_us, separator, request_id = text.partition(":")
        if not separator or not request_id or "\0" in request_id:
            raise ValueError(token)
        result = Timestamp()
        result.FromMicroseconds(int(start_us))
        return result.ToDatetime(dt.UTC), request_id
    except (binascii.Error, ValueError, OverflowError):
        raise _invalid("page_token", "is not a token of an earlier page") from None


def _microseconds(duration: Duration, field: str, index: int) -> int:
    # Nanoseconds of a Duration have the sign of its seconds.
    microseconds = duration.seconds * 1_000_000 + int(duration.nanos / 1000)
    if not 0 <= microseconds < 2**63:
        raise _invalid(field.format(index), "is negative or too long")
    return microseconds


def _duration(microseconds: int) -> Duration:
    result = Duration()
    result.FromMicroseconds(microseconds)
    return result


def _invalid(field: str, problem: str) -> MeshError:
    return MeshError(errors_pb2.ERROR_REASON_INVALID_ARGUMENT, f"{field}: {problem}", param=field)
