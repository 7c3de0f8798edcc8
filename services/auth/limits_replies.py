"""What callers are told of limits: `x-ratelimit-…` headers, and refusals.

Headers come to every limited call, so that they are put together as bytes: what is appended to a
serialized message is merged into it (https://protobuf.dev/programming-guides/encoding/#last-one-wins).
"""

import math
from decimal import Decimal
from functools import lru_cache

from envoy.service.auth.v3 import external_auth_pb2

from infermesh.errors.v1 import errors_pb2
from services.auth.limiting import contract
from services.auth.limiting.contract import Refusal, Room, Verdict
from services.auth.limits import Scope, scope_of
from services.kit import authorization, headers
from services.kit.errors import MeshError

_REASONS = {
    contract.REQUESTS_PER_MINUTE: errors_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED,
    contract.TOKENS_PER_MINUTE: errors_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED,
    contract.CONCURRENT_REQUESTS: errors_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED,
    contract.TOKENS_PER_DAY: errors_pb2.ERROR_REASON_INSUFFICIENT_QUOTA,
    contract.USD_PER_MONTH: errors_pb2.ERROR_REASON_INSUFFICIENT_QUOTA,
}
_WORDS = {
    contract.REQUESTS_PER_MINUTE: "calls in a minute",
    contract.TOKENS_PER_MINUTE: "tokens in a minute",
    contract.CONCURRENT_REQUESTS: "calls at the same time",
    contract.TOKENS_PER_DAY: "tokens in a day (UTC)",
    contract.USD_PER_MONTH: "US dollars in a month (UTC)",
}
_NANO = Decimal(1_000_000_000)
# The longest that OpenAI's clients wait on the word of a header.
_MAX_WAIT_S = 60

# Where a header stands in `CheckResponse`: tags of its fields, each with a length after it.
_IN_ALLOWED = (b"\x1a", b"\x32")  # ok_response (3), response_headers_to_add (6)
_IN_DENIED = (b"\x12", b"\x12")  # denied_response (2), headers (2)
_OVERWRITE = b"\x18\x02"  # append_action (3): OVERWRITE_IF_EXISTS_OR_ADD


def _reserved(mark: str) -> bytes:
    response = external_auth_pb2.CheckResponse()
    response.ok_response.headers.append(authorization.header(headers.RESERVED, mark))
    return bytes(response.SerializeToString())


# Envoy tells of every end of calls with the second mark; of those with the first only where it was
# no answer of a node's that the ledger will settle.
_RESERVED, _HOLDS_PLACE = _reserved("1"), _reserved("place")


def admitted(reply: bytes, verdict: Verdict) -> bytes:
    """Returns the answer `reply` with what an admitted call gets besides."""
    mark = _HOLDS_PLACE if verdict.holds_place else _RESERVED
    return reply + mark + _room_headers(verdict, is_allowed=True)


def refused(error: MeshError, verdict: Verdict, *, for_grpc: bool) -> bytes:
    """Returns the answer that refuses a call over its limits."""
    reply = authorization.deny(error, for_grpc=for_grpc) + _room_headers(verdict, is_allowed=False)
    if error.retry_after_s is None or error.retry_after_s > _MAX_WAIT_S:
        # OpenAI's clients would try again twice, a second later, and add to the load.
        reply += _header(_IN_DENIED, b"x-should-retry", b"false")
    return reply


def refusal_error(refusal: Refusal, tokens: int, usd_nano: int) -> MeshError:
    """Returns the refusal of a call.

    Args:
        refusal: Which limit has no room.
        tokens: What the call was to be reserved.
        usd_nano: What that costs at most.
    """
    is_usd = refusal.limit == contract.USD_PER_MONTH
    write = usd_text if is_usd else str
    allowed = write(refusal.allowed)
    parts = [
        f"The limit of {_name(scope_of(refusal.scope))} has no room for the call:"
        f" {allowed} {_WORDS[refusal.limit]}, {write(refusal.used)} are used."
    ]
    if is_usd:
        parts.append(f"The call may cost {usd_text(usd_nano)}.")
    elif refusal.limit in (contract.TOKENS_PER_MINUTE, contract.TOKENS_PER_DAY):
        parts.append(f"The call may take {tokens}.")
    wait_s = None if refusal.retry_after_s is None else max(1, math.ceil(refusal.retry_after_s))
    if wait_s is None:
        parts.append("It is larger than the limit alone.")
    else:
        parts.append(f"Try again in {duration(wait_s)}.")
    return MeshError(
        _REASONS[refusal.limit],
        " ".join(parts),
        metadata={"scope": refusal.scope, "limit": refusal.limit, "allowed": allowed},
        retry_after_s=wait_s,
    )


def unavailable() -> MeshError:
    """Nobody can tell what is left of the call's limits."""
    return MeshError(
        errors_pb2.ERROR_REASON_STORE_UNAVAILABLE,
        "What is left of the limits of this call cannot be told now. Try again shortly.",
        retry_after_s=1,
    )


def duration(seconds: float) -> str:
    """Returns whole seconds as OpenAI writes them. Example: `6m0s`."""
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60}s"
    return f"{whole // 3600}h{whole % 3600 // 60}m{whole % 60}s"


def usd_text(nano: int) -> str:
    """Returns billionths of a dollar as dollars, with two digits after the point at least."""
    return decimal_text(Decimal(nano) / _NANO)


def decimal_text(usd: Decimal) -> str:
    """Returns dollars without zeros at the end, with two digits after the point at least."""
    whole, _, cents = f"{usd:.9f}".rstrip("0").partition(".")
    return f"{whole}.{cents:0<2}"


def _name(scope: Scope) -> str:
    if scope.tenant:
        if scope.project:
            return f"the project `{scope.project}` of the tenant `{scope.tenant}`"
        return f"the tenant `{scope.tenant}`"
    if scope.model:
        return f"the key `{scope.key_id}` for the model `{scope.model}`"
    return f"the key `{scope.key_id}`"


def _room_headers(verdict: Verdict, *, is_allowed: bool) -> bytes:
    made = b""
    place = _IN_ALLOWED if is_allowed else _IN_DENIED
    for kind, room in ((b"requests", verdict.requests), (b"tokens", verdict.tokens)):
        if room is not None:
            made += _one_room(place, kind, room)
    return made


def _one_room(place: tuple[bytes, bytes], kind: bytes, room: Room) -> bytes:
    remaining = b"%d" % room.remaining
    return (
        _lasting(place, kind, room.limit, math.ceil(room.reset_s))
        + _until_value(place, b"x-ratelimit-remaining-" + kind, len(remaining))
        + remaining
        + _OVERWRITE
    )


@lru_cache(4096)
def _lasting(place: tuple[bytes, bytes], kind: bytes, limit: int, reset_s: int) -> bytes:
    """Returns what is not different for each call."""
    return _header(place, b"x-ratelimit-limit-" + kind, b"%d" % limit) + _header(
        place, b"x-ratelimit-reset-" + kind, duration(reset_s).encode()
    )


def _header(place: tuple[bytes, bytes], name: bytes, value: bytes) -> bytes:
    """Returns a header of less than 100 bytes as a part of a `CheckResponse`."""
    return _until_value(place, name, len(value)) + value + _OVERWRITE


@lru_cache(256)
def _until_value(place: tuple[bytes, bytes], name: bytes, length: int) -> bytes:
    """Returns a header up to its value, which is so long. One byte holds lengths below 128."""
    outer, inner = place
    pair = b"\x0a%c%b\x12%c" % (len(name), name, length)
    size = len(pair) + length
    option = 2 + size + len(_OVERWRITE)
    return b"%b%c%b%c\x0a%c%b" % (outer, option + 2, inner, option, size, pair)
