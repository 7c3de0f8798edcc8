"""`infermesh usage` and `infermesh prices` against the service itself."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from contract.metrics_world import DAY, Service, event, settings, wipe
from services.cli.main import app
from services.kit.server import serving
from services.metrics.app import make_app

Cli = Callable[..., Awaitable[Any]]


@pytest.fixture
async def address(postgres_url: str, tmp_path: Path) -> AsyncIterator[str]:
    await wipe(postgres_url)
    made = settings(postgres_url, tmp_path)
    async with serving(made, make_app(made)) as address:
        yield address


@pytest.fixture
async def service(address: str) -> AsyncIterator[Service]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield Service(channel)


@pytest.fixture
def cli(address: str) -> Cli:
    async def run(*arguments: str) -> Any:
        env = {"INFERMESH_ADDRESS": address, "INFERMESH_KEY": "im-admin", "COLUMNS": "200"}
        # The commands block.
        return await asyncio.to_thread(CliRunner().invoke, app, arguments, env=env)

    return run


def _lines(done: Any) -> list[list[str]]:
    assert done.exit_code == 0, done.output
    return [line.split() for line in done.stdout.splitlines()]


async def test_prices(cli: Cli) -> None:
    done = await cli("prices", "set", "m", "--input", "0.150", "--output", "0.6")
    assert (done.exit_code, done.stdout) == (0, "The price of m is set.\n")
    cached = ("--cached-input", "0.05")
    assert (
        await cli("prices", "set", "n", "--input", "1", "--output", "2", *cached)
    ).exit_code == 0
    rows = [line[:5] for line in _lines(await cli("prices", "list"))]
    assert ["m", "0.15", "as", "prompt", "0.6"] in rows
    assert ["n", "1", "0.05", "2"] in [row[:4] for row in rows]
    done = await cli("prices", "delete", "m")
    assert (done.exit_code, done.stdout) == (0, "m has no price any more.\n")
    done = await cli("prices", "delete", "m")
    assert (done.exit_code, done.stderr) == (1, "The model `m` has no price.\n")
    done = await cli("prices", "set", "m", "--input", "-1", "--output", "2")
    assert done.exit_code == 1
    assert done.stderr.startswith("price.input_usd: ")


async def test_usage(cli: Cli, service: Service, tmp_path: Path) -> None:
    assert (await cli("usage")).stdout == "No usage.\n"
    await service.set_price("m", "1", "1")
    await service.record(event("a"), event("b", tenant="zeta", model="n"))
    rows = _lines(await cli("usage"))
    assert ["acme", "m", "1", "0", "30", "10", "4", "0.000034", "0"] in rows
    assert ["zeta", "n", "1", "0", "30", "10", "4", "unknown", "1"] in rows
    rows = _lines(await cli("usage", "--by", "key, day", "--tenant", "acme", "--since", DAY))
    assert [DAY, "acme", "web", "key-1", "1", "0", "30", "10", "4", "0.000034", "0"] in rows
    assert not any("zeta" in row for row in rows)
    assert (await cli("usage", "--until", DAY)).stdout == "No usage.\n"
    file = tmp_path / "usage.csv"
    assert (await cli("usage", "--by", "model", "--csv", str(file))).exit_code == 0
    lines = file.read_bytes().split(b"\r\n")
    assert lines[0].startswith(b"model,request_count,")
    assert lines[1:] == [b"m,1,0,0,0,30,4,10,0.000034", b"n,1,0,0,1,30,4,10,", b""]
    done = await cli("usage", "--by", "hour")
    assert done.exit_code == 1
    assert done.stderr == "hour: sums are by day, tenant, project, key, model.\n"
