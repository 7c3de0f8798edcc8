"""Measures what the ledger costs: CPU per request in metrics and PostgreSQL, and how long a call
takes from its end at the node until auth has settled it.

Usage: `python tests/bench/ledger.py` (two minutes). Three spools, as nodes have them, bring the
events; auth is played by this process.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import grpc
import psutil
from google.protobuf.timestamp_pb2 import Timestamp

import support
from infermesh.metrics.v1 import usage_service_pb2 as pb
from infermesh.metrics.v1 import usage_service_pb2_grpc as pb_grpc
from services.cli import embedded, probes
from services.cli.part import Part
from services.cli.supervisor import Supervisor
from services.kit.usage_spool import Spool, open_spool

_SPOOLS = 3
_TICK_S = 0.03


class _Auth:
    """Answers what metrics calls, and notes when."""

    def __init__(self) -> None:
        self.settled_at: dict[str, float] = {}
        self.calls = 0

    async def settle(self, request: Any, _: Any) -> Any:
        from infermesh.auth.v1 import limit_service_pb2

        now = time.perf_counter()
        self.calls += 1
        for each in request.settlements:
            self.settled_at[each.request_id] = now
        return limit_service_pb2.SettleUsageResponse()

    def handlers(self) -> Any:
        from infermesh.auth.v1 import limit_service_pb2 as limits

        return grpc.method_handlers_generic_handler(
            "infermesh.auth.v1.LimitService",
            {
                "SettleUsage": grpc.unary_unary_rpc_method_handler(
                    self.settle,
                    limits.SettleUsageRequest.FromString,
                    limits.SettleUsageResponse.SerializeToString,
                )
            },
        )


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        times = process.cpu_times()
        # Backends that ended in between are in their parent's times.
        total += times.user + times.system + times.children_user + times.children_system
    return total


async def _run(options: argparse.Namespace, *, keys: int, reserved: bool, priced: bool) -> str:
    auth = _Auth()
    server = grpc.aio.server()
    if options.settles:
        server.add_generic_rpc_handlers((auth.handlers(),))
    auth_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        store = embedded.postgres(path, support.free_port(), path)
        port = support.free_port()
        metrics = Part(
            name="metrics",
            argv=[sys.executable, "-m", "services.metrics"],
            env={
                **os.environ,
                "INFERMESH_LISTEN": f"127.0.0.1:{port}",
                "INFERMESH_DATABASE_URL": store.url,
                "INFERMESH_STATE_DIR": str(path / "metrics"),
                **({"INFERMESH_AUTH_ADDRESS": f"127.0.0.1:{auth_port}"} if options.settles else {}),
            },
            probe=probes.grpc_health("127.0.0.1", port),
            log_file=path / "metrics.log",
            after=(store.part.name,),
        )
        supervisor = Supervisor([store.part, metrics])
        try:
            await supervisor.start()
            return await _measure(
                options, auth, port, path, keys=keys, reserved=reserved, priced=priced
            )
        finally:
            await supervisor.stop()
            await server.stop(0)


async def _measure(
    options: argparse.Namespace,
    auth: _Auth,
    port: int,
    folder: Path,
    *,
    keys: int,
    reserved: bool,
    priced: bool,
) -> str:
    sent_at: dict[str, float] = {}
    async with contextlib.AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        stub: Any = pb_grpc.UsageServiceStub(channel)
        if priced:
            await _set_price(channel)
        numbers = itertools.count()

        def event() -> pb.UsageEvent:
            made = pb.UsageEvent(
                request_id=str(uuid.uuid4()),
                attempt=1,
                tenant="acme",
                key_id=f"key_{next(numbers) % keys:016}",
                model="smollm2-135m",
                node_id="node-1",
                operation=pb.OPERATION_CHAT,
                outcome=pb.OUTCOME_OK,
                prompt_tokens=321,
                completion_tokens=64,
                cached_tokens=32,
                start_time=Timestamp(seconds=int(time.time())),
            )
            if reserved:
                made.reserved = True
            return made

        async def send(spool: Spool, seconds: float) -> None:
            end = time.perf_counter() + seconds
            while (start := time.perf_counter()) < end:
                for _ in range(max(1, round(options.rate * _TICK_S / _SPOOLS))):
                    made = event()
                    spool.begin(made)
                    spool.finish(made)
                    sent_at[made.request_id] = time.perf_counter()
                await asyncio.sleep(max(0.0, start + _TICK_S - time.perf_counter()))

        spools = [
            await stack.enter_async_context(open_spool(folder / f"node-{n}", stub.RecordUsage))
            for n in range(_SPOOLS)
        ]

        async def load(seconds: float) -> None:
            async with asyncio.TaskGroup() as tasks:
                for number, spool in enumerate(spools):
                    tasks.create_task(send(spool, seconds))
                    await asyncio.sleep(_TICK_S / _SPOOLS * (number < _SPOOLS - 1))

        await load(2)
        children = psutil.Process().children(recursive=True)
        metrics = [p for p in children if "services.metrics" in p.cmdline()]
        postgres = [p for p in children if p not in metrics]
        sent_at.clear()
        auth.settled_at.clear()
        before = _cpu_s(metrics), _cpu_s(postgres)
        await load(options.seconds)
        await asyncio.sleep(1)
        # Backends may have come and gone: PostgreSQL's first process counts them.
        after = _cpu_s(metrics), _cpu_s([p for p in postgres if p.is_running()])
    count = len(sent_at)
    parts = [1e6 * (b - a) / count for a, b in zip(before, after, strict=True)]
    line = f"metrics {parts[0]:5.0f} µs, PostgreSQL {parts[1]:5.0f} µs a request"
    if auth.settled_at and reserved:
        delays = sorted(auth.settled_at[each] - sent for each, sent in sent_at.items())
        line += (
            f"; settled after {1000 * delays[count // 2]:.0f} ms (median),"
            f" {1000 * delays[int(count * 0.99)]:.0f} ms (p99), in {auth.calls} batches"
        )
    return line


async def _set_price(channel: grpc.aio.Channel) -> None:
    from infermesh.metrics.v1 import price_service_pb2 as prices
    from infermesh.metrics.v1 import price_service_pb2_grpc as prices_grpc

    price = prices.Price(
        model="smollm2-135m", input_usd="0.15", cached_input_usd="0.075", output_usd="0.6"
    )
    stub: Any = prices_grpc.PriceServiceStub(channel)
    await stub.SetPrice(prices.SetPriceRequest(price=price))


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=500, help="requests a second")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--settles", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    cases: list[dict[str, Any]] = [
        {"keys": keys, "reserved": reserved, "priced": options.settles}
        for keys in (1, 50)
        for reserved in ((False, True) if options.settles else (False,))
    ]
    for case in cases:
        told = "with limits" if case["reserved"] else "without limits"
        print(f"{case['keys']:3} keys, {told:14}: {await _run(options, **case)}", flush=True)


if __name__ == "__main__":
    asyncio.run(_main())
