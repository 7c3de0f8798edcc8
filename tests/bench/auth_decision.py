"""What a decision costs auth itself, without and with limits; Redis' part is `make bench-limits`.

python tests/bench/auth_decision.py
"""

import asyncio
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.auth.v3 import external_auth_pb2

from services.auth import access_log
from services.auth.limiting.contract import ScopeLimits
from unit.auth.auth_samples import REST_CHAT, USER, check_request, rest_headers
from unit.auth.test_limits_gate import REST, World

_ROUNDS, _CALLS = 5, 10_000
_SCOPES = tuple(
    ScopeLimits(scope, 10**9, 10**12, 10**6, 10**15, 10**15)
    for scope in ("t:acme", "p:acme/default", "k:key_user", "m:key_user/m")
)


def _decision_us(*scopes: ScopeLimits) -> float:
    world = World(*scopes)
    data = check_request(REST_CHAT, rest_headers(USER), rest=REST).SerializeToString()
    best = float("inf")
    for _ in range(_ROUNDS):
        began = time.process_time()
        for _ in range(_CALLS):
            world.decider.decide(external_auth_pb2.CheckRequest.FromString(data))
        best = min(best, time.process_time() - began)
        world.limiter.asked.clear()
    return best / _CALLS * 1e6


def _end_us(prompt_bytes: int) -> float:
    message = als_pb2.StreamAccessLogsMessage()
    entry: accesslog_pb2.HTTPAccessLogEntry = message.http_logs.log_entry.add()
    entry.request.request_id = "0b908eca-7d2b-4af2-9322-960152362ce8"
    entry.response.response_code.value = 200
    entry.response.response_code_details = "via_upstream"
    common = entry.common_properties
    common.upstream_remote_address.socket_address.address = "127.0.0.1"
    # Envoy sends all metadata along, the cut of the prompt among it.
    common.metadata.filter_metadata["infermesh.prompt"].update({"text": "x" * prompt_bytes})
    data = message.SerializeToString()
    best = float("inf")
    for _ in range(_ROUNDS):
        began = time.process_time()
        for _ in range(_CALLS):
            read = als_pb2.StreamAccessLogsMessage.FromString(data)
            for each in read.http_logs.log_entry:
                access_log.reached_engine(each)
        best = min(best, time.process_time() - began)
    return best / _CALLS * 1e6


async def _main() -> None:
    print(f"a decision without limits: {_decision_us():.1f} µs")
    print(f"with five limits on four scopes, less Redis: {_decision_us(*_SCOPES):.1f} µs")
    print(f"the end of a call, long prompt: {_end_us(8400):.1f} µs")


if __name__ == "__main__":
    asyncio.run(_main())
