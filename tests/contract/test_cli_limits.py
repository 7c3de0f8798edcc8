"""`infermesh limits`, against the real service."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from contract.test_limits_service import FakeMetrics, Limited, limited
from contract.test_limits_service import metrics as metrics
from services.cli.main import app

Run = Callable[..., Any]


@pytest.fixture
async def auth(postgres_url: str, redis_url: str, metrics: FakeMetrics) -> AsyncIterator[Limited]:
    async with limited(postgres_url, redis_url, metrics_address=metrics.address) as one:
        yield one


@pytest.fixture
def run(auth: Limited) -> Run:
    async def run(*arguments: str) -> Any:
        command = ["limits", *arguments, "--address", auth.replica.address, "--key", "im-test"]
        return await asyncio.to_thread(
            CliRunner().invoke, app, command, env={"COLUMNS": "200", "NO_COLOR": "1"}
        )

    return run


def cells(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines() if line.strip()]


async def test_the_life_of_limits(run: Run, auth: Limited) -> None:
    key_id, secret = await auth.key(tenant="cli")
    done = await run(
        *("set", "--key-id", key_id, "--rpm", "60", "--tpm", "1000", "--concurrent", "3"),
        *("--tokens-per-day", "5000", "--usd-per-month", "2.5", "--alert", "80", "--alert", "50"),
    )
    assert done.exit_code == 0, done.output
    expected = [key_id, "60", "1000", "3", "5000", "2.50", "50%", "80%"]
    assert cells(done.output)[-1] == expected
    assert cells((await run("get", "--key-id", key_id)).output)[-1] == expected
    assert expected in cells((await run("list")).output)

    assert (await auth.check(secret)).is_admitted
    used = {row[0]: row[1:] for row in cells((await run("state", "--key-id", key_id)).output)}
    assert used["requests_per_minute"][:2] == ["60", "1"]
    assert used["tokens_per_minute"][:2] == ["1000", "150"]
    assert used["tokens_per_day"][:3] == ["5000", "150", "150"]
    assert used["concurrent_requests"] == ["3", "1"]

    done = await run("delete", "--key-id", key_id)
    assert done.output == f"The limits of {key_id} are gone.\n"
    done = await run("get", "--key-id", key_id)
    assert (done.exit_code, done.stderr) == (1, f"There are no limits of `k:{key_id}`.\n")


async def test_each_kind_of_scope(run: Run) -> None:
    for scope in (
        ("--tenant", "cli-a"),
        ("--tenant", "cli-a", "--project", "web"),
        ("--key-id", "key_cli", "--model", "org/model:8b"),
    ):
        assert (await run("set", *scope, "--rpm", "1")).exit_code == 0
        row = cells((await run("get", *scope)).output)[-1]
        assert row == [*scope[1::2], "1"]
        assert (await run("delete", *scope)).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set", "--rpm", "1"), "Name a scope"),
        (("set", "--tenant", "a", "--key-id", "k", "--rpm", "1"), "Name a scope"),
        (("set", "--project", "a", "--rpm", "1"), "Name a scope"),
        (("set", "--tenant", "a", "--model", "m", "--rpm", "1"), "Name a scope"),
        (("set", "--tenant", "a"), "Name a limit"),
        (("set", "--tenant", "a", "--usd-per-month", "1e3"), "usd_per_month"),
        (("set", "--tenant", "a", "--tpm", "1000000000001"), "1000000000000"),
        (("delete", "--tenant", "nobody"), "There are no limits"),
        (("state", "--tenant", "nobody"), "There are no limits"),
    ],
)
async def test_mistakes_are_one_line(run: Run, arguments: tuple[str, ...], said: str) -> None:
    done = await run(*arguments)
    assert done.exit_code != 0
    assert said in done.stderr
    assert "Traceback" not in done.output
