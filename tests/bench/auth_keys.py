"""Measures what 100,000 keys cost auth: memory, the start from PostgreSQL, and a decision.

Usage: `make bench-auth` (a minute). Every tenth key has rules of its own tenant's.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil

import support
from infermesh.access.v1 import access_pb2
from services.auth import secret
from services.auth.keyring import Keyring
from services.auth.postgres_store import PostgresKeyStore, _keys, _values
from services.auth.postgres_tenants import metadata
from services.auth.rules import NONE, Rules
from services.auth.store import Key
from services.cli import embedded
from services.cli.supervisor import Supervisor
from services.kit.database import create_tables, make_engine
from unit.auth.auth_samples import (
    GRPC_CHAT,
    HASH_SECRET,
    REST_CHAT,
    check_request,
    grpc_headers,
    make_decider,
    rest_headers,
)

_KEYS = 100_000
_BATCH = 2_000
_ROUNDS, _CALLS = 15, 10_000


def _key(number: int, ring: Keyring, plain: str) -> Key:
    tenant = f"tenant-{number % 1000}"
    bound = Rules(allowed_models=(f"{tenant}-*", "smollm2-*"), networks=("127.0.0.0/8",))
    return Key(
        key_id=secret.make_key_id(),
        display_name=f"key {number}",
        role=access_pb2.ROLE_USER,
        tenant=tenant,
        prefix=secret.prefix(plain),
        secret_hash=ring.digest(plain),
        create_time=datetime.now(UTC),
        rules=NONE if number % 10 else bound,
    )


async def _measure() -> None:
    ring = Keyring(HASH_SECRET)
    secrets = [secret.make() for _ in range(_KEYS)]
    with tempfile.TemporaryDirectory() as folder:
        database = embedded.postgres(Path(folder), support.free_port(), Path(folder), durable=False)
        supervisor = Supervisor([database.part])
        try:
            await supervisor.start()
            engine = make_engine(database.url)
            await create_tables(engine, metadata)
            for start in range(0, _KEYS, _BATCH):
                rows = [
                    _values(_key(number, ring, secrets[number]))
                    for number in range(start, start + _BATCH)
                ]
                async with engine.begin() as connection:
                    await connection.execute(_keys.insert(), rows)
            store = PostgresKeyStore(engine)
            process = psutil.Process(os.getpid())
            before = process.memory_info().rss
            began = time.perf_counter()
            await ring.load(store.all())
            took = time.perf_counter() - began
            used = process.memory_info().rss
            await engine.dispose()
        finally:
            await supervisor.stop()
    assert len(ring) == _KEYS
    print(f"{_KEYS} keys: loaded in {took:.2f} s; {(used - before) / 2**20:.0f} MiB more,")
    print(f"  {used / 2**20:.0f} MiB for the whole process, this script's own secrets included")
    decider = make_decider(ring)
    rest = {"model": "smollm2-135m", "stream": "false"}
    plain, bound = secrets[1], secrets[10]
    for name, request in (
        ("REST", check_request(REST_CHAT, rest_headers(plain), rest=rest)),
        ("REST, key with rules", check_request(REST_CHAT, rest_headers(bound), rest=rest)),
        ("gRPC", check_request(GRPC_CHAT, grpc_headers(plain), typed={"model": "smollm2-135m"})),
    ):
        print(f"decision, {name}: {_cost_us(lambda r=request: decider.decide(r)):.2f} us")


def _cost_us(call: Callable[[], bytes]) -> float:
    rounds = []
    for _ in range(_ROUNDS):
        began = time.process_time()
        for _ in range(_CALLS):
            call()
        rounds.append((time.process_time() - began) / _CALLS * 1e6)
    return statistics.median(rounds)


if __name__ == "__main__":
    asyncio.run(_measure())
