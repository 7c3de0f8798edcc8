"""The embedded PostgreSQL and Redis as the mesh runs them."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis.asyncio

from services.cli import embedded
from services.cli.keeper import PartState
from services.cli.supervisor import Supervisor

REPOSITORY = Path(__file__).parents[2]


def plain(url: str) -> str:
    return url.replace("+asyncpg", "")


async def test_pgvector_is_there(postgres_url):
    connection = await asyncpg.connect(plain(postgres_url))
    try:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA pg_catalog")
        assert await connection.fetchval("SELECT '[1,2]'::vector <-> '[1,4]'::vector") == 2
    finally:
        await connection.close()


async def test_both_want_their_password(postgres_url, redis_url):
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(plain(postgres_url), password="wrong")
    stranger = redis.asyncio.from_url("redis://" + redis_url.rpartition("@")[2])
    async with stranger:
        with pytest.raises(redis.exceptions.AuthenticationError):
            await stranger.ping()


async def test_data_survives_kill_9_and_secrets_are_private(tmp_path, free_port):
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    stores = [
        embedded.postgres(state, free_port(), state / "logs"),
        embedded.redis(state, free_port(), state / "logs"),
    ]
    for name in ("postgres.password", "redis.password", "redis.conf"):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600
    supervisor = Supervisor([store.part for store in stores])
    try:
        await supervisor.start()
        connection = await asyncpg.connect(plain(stores[0].url))
        await connection.execute("CREATE TABLE kept AS SELECT 42 AS value")
        async with redis.asyncio.from_url(stores[1].url) as client:
            await client.set("kept", "42")
        pids = [supervisor.state(name).pid for name in ("postgres", "redis")]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await connection.close()
        async with asyncio.timeout(60):
            while not all(
                s.state is PartState.READY and s.pid not in pids
                for s in supervisor.states().values()
            ):
                await asyncio.sleep(0.02)
        connection = await asyncpg.connect(plain(stores[0].url))
        assert await connection.fetchval("SELECT value FROM kept") == 42
        await connection.close()
        async with redis.asyncio.from_url(stores[1].url) as client:
            assert await client.get("kept") == b"42"
    finally:
        began = time.monotonic()
        await supervisor.stop()
        assert time.monotonic() - began < 15


def test_both_die_with_a_parent_that_is_killed(tmp_path, free_port):
    code = f"""
import asyncio
from pathlib import Path
from services.cli import embedded
from services.cli.supervisor import Supervisor

async def main():
    state = Path({str(tmp_path)!r})
    stores = [
        embedded.postgres(state, {free_port()}, state, durable=False),
        embedded.redis(state, {free_port()}, state),
    ]
    supervisor = Supervisor([store.part for store in stores])
    await supervisor.start()
    print("up", flush=True)
    await supervisor.run_forever()

asyncio.run(main())
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "up\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) > 2  # PostgreSQL has processes of its own
    parent.kill()
    parent.communicate()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
