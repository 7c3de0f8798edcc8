"""A process that is killed at any instant loses no audit event and doubles none."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from contract.test_audit_service import World, wipe
from contract.test_auth import running, settings
from infermesh.auth.v1 import audit_service_pb2 as pb
from services.auth.audit_store import AuditStore, events, metadata
from services.auth.audit_verify import verify
from services.kit import audit_chain
from services.kit.audit_sender import reporting
from services.kit.audit_spool import AuditSpool, open_log
from services.kit.database import create_tables, make_engine

_ROUNDS = 5

# Writes events as fast as PostgreSQL takes them, and says which are in the spool.
_CHILD = """
import asyncio, sys
from pathlib import Path
from infermesh.auth.v1 import audit_service_pb2 as pb
from services.kit.audit_spool import open_spool
from services.auth.audit_store import AuditStore
from services.kit.database import make_engine

async def main(url, directory, name):
    async with open_spool(Path(directory), AuditStore(make_engine(url)).append) as spool:
        number = 0
        while True:
            event = pb.AuditEvent(event_id=f"{name}-{number}", count=1)
            spool.append(event.SerializeToString(), True)
            print(number, flush=True)
            number += 1
            await asyncio.sleep(0.001)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_killed_at_random(postgres_url: str, tmp_path: Path) -> None:
    engine = make_engine(postgres_url)
    await create_tables(engine, metadata)
    async with engine.begin() as connection:
        await connection.execute(sa.text("TRUNCATE auth.audit_events, auth.audit_chain"))
    promised = {}
    for name in range(_ROUNDS):
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _CHILD, postgres_url, str(tmp_path), str(name)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert child.stdout is not None
        # Killed somewhere in the middle of batches, each time elsewhere.
        lines = [await child.stdout.readline() for _ in range(20 + name * 30)]
        os.kill(child.pid, signal.SIGKILL)
        lines += (await child.stdout.read()).splitlines(keepends=True)
        await child.wait()
        promised[name] = len([line for line in lines if line.endswith(b"\n")])

    async def send(batch: Sequence[pb.AuditEvent]) -> None:
        await AuditStore(engine).append(batch)

    spool = AuditSpool(open_log(tmp_path), send)
    await spool.send_waiting()
    await spool.close()
    async with engine.connect() as connection:
        found = list(
            await connection.scalars(sa.select(events.c.event_id).order_by(events.c.sequence))
        )
    assert len(found) == len(set(found))
    for name, count in promised.items():
        mine = [int(each.split("-")[1]) for each in found if each.startswith(f"{name}-")]
        # The last may be in the spool without the promise having been read.
        assert mine == list(range(len(mine)))
        assert count <= len(mine) <= count + 1
    assert (await verify(engine, 0, audit_chain.START)).complete
    async with engine.begin() as connection:
        await connection.execute(sa.text("TRUNCATE auth.audit_events, auth.audit_chain"))
    await engine.dispose()


# Changes things as fast as it can, as another service does, and says what it has answered.
_SERVICE = """
import asyncio, sys
from pathlib import Path
import grpc
from services.kit.audit_sender import reporting

async def main(address, directory, name):
    async with grpc.aio.insecure_channel(address) as channel:
        async with reporting(channel, Path(directory)) as recorder:
            number = 0
            while True:
                recorder.check_room()
                recorder.outcome("/killed", {}, "OK", resource=f"{name}-{number}")
                print(number, flush=True)
                number += 1
                await asyncio.sleep(0.001)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_service_that_is_killed_at_random_while_auth_restarts(
    postgres_url: str, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    promised = {}
    for name in range(_ROUNDS):
        # Auth comes and goes meanwhile, and may commit a batch without the answer getting through.
        async with running(settings(postgres_url, listen=address)) as replica:
            if name == 0:
                await wipe(postgres_url)
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _SERVICE, address, str(tmp_path), str(name)),
                stdout=asyncio.subprocess.PIPE,
            )
            assert child.stdout is not None
            lines = [await child.stdout.readline() for _ in range(100 + name * 50)]
        lines += [await child.stdout.readline() for _ in range(30)]
        os.kill(child.pid, signal.SIGKILL)
        lines += (await child.stdout.read()).splitlines(keepends=True)
        await child.wait()
        promised[name] = len([line for line in lines if line.endswith(b"\n")])

    async with running(settings(postgres_url, listen=address)) as replica:
        async with reporting(replica.channel, tmp_path):
            pass  # The next process sends what is left when it starts, or stops.
        answer = await World(replica, postgres_url).audit.VerifyAuditLog(pb.VerifyAuditLogRequest())
        assert answer.complete
    engine = make_engine(postgres_url)
    async with engine.connect() as connection:
        query = sa.select(events.c.resource).where(events.c.rpc == "/killed")
        found = list(await connection.scalars(query.order_by(events.c.sequence)))
    await engine.dispose()
    assert len(found) == len(set(found))
    for name, count in promised.items():
        mine = [int(each.split("-")[1]) for each in found if each.startswith(f"{name}-")]
        assert mine == list(range(len(mine)))
        assert count <= len(mine) <= count + 1
    await wipe(postgres_url)
