"""`infermesh bench` over real connections: what stalls is charged, what fails is counted."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.bench.answer import Call
from services.cli.bench.figures import report
from services.cli.bench.plan import Plan
from services.cli.bench.prompts import bodies
from services.cli.bench.run import Run
from services.cli.bench.wire import Wire
from services.cli.main import app
from services.inference.simulator.options import EngineOptions
from services.inference.simulator.server import serving
from support import free_port

_FAST = EngineOptions(model="m", prefill_rate=0, decode_rate=500.0, slots=64)


async def run(port: int, plan: Plan) -> dict:
    wire = Wire("127.0.0.1", port, {}, None, is_stream=plan.is_stream)
    try:
        taken = await Run(plan, bodies(plan), wire).run()
    finally:
        wire.close()
    return report(plan, taken, {})


@asynccontextmanager
async def answering(*stalls_s: float, keeps: bool = True) -> AsyncIterator[int]:
    """Serves whole answers one at a time; the first take as long as said, the others no time."""
    body = b'{"usage": {"prompt_tokens": 3, "completion_tokens": 2}}'
    end = b"" if keeps else b"connection: close\r\n"
    turn, left = asyncio.Lock(), list(stalls_s)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            async with turn:
                await asyncio.sleep(left.pop(0) if left else 0)
            writer.write(b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n\r\n" % (end, len(body)))
            writer.write(body)
            if not keeps:
                writer.close()
                return

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    port = free_port()
    server = await asyncio.start_server(handle, "127.0.0.1", port)
    try:
        yield port
    finally:
        server.close()


async def test_an_open_loop_charges_a_stall_to_all_that_were_meant_to_begin() -> None:
    plan = Plan("m", rate=100, is_even=True, requests=60, is_stream=False, concurrency=4)
    async with answering(0.4) as port:
        opened = await run(port, plan)
    async with answering(0.4) as port:
        closed = await run(port, Plan("m", requests=60, is_stream=False, concurrency=1))
    # The stall is two thirds of the run: half of the calls and more were meant to begin in it.
    assert opened["ms"]["e2e"]["p50"] > 50
    assert opened["ms"]["late"]["p90"] > 200
    # A caller who waits sees it once, and its median knows nothing of it.
    assert closed["ms"]["e2e"]["max"] > 400
    assert closed["ms"]["e2e"]["p50"] < 200
    assert opened["calls"]["answered"] == closed["calls"]["answered"] == 60


async def test_streams_of_an_engine_are_read_with_all_that_they_tell() -> None:
    port = free_port()
    async with serving("127.0.0.1", [port], _FAST):
        plan = Plan("m", concurrency=4, requests=12, output_tokens=20, slo_itl_ms=1000)
        found = await run(port, plan)
    assert found["calls"] == {"over": 12, "answered": 12, "failed": 0, "abandoned": 0}
    assert found["tokens"]["output"] == 240
    assert found["ms"]["ttft"]["count"] == 12
    assert found["ms"]["itl"]["p50"] > 0
    assert found["rates"]["good_share"] == 1


async def test_a_call_that_takes_too_long_fails_and_costs_its_connection() -> None:
    async with answering(0.5) as port:
        plan = Plan("m", concurrency=1, requests=2, timeout_s=0.2, is_stream=False)
        found = await run(port, plan)
    assert found["errors"] == {"timeout": 2}  # the second waits behind the first


async def test_connections_that_end_are_made_anew() -> None:
    async with answering(keeps=False) as port:
        found = await run(port, Plan("m", concurrency=2, requests=10, is_stream=False))
    assert found["calls"]["answered"] == 10


async def test_a_connection_closed_while_it_waited_is_no_failure() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    port, accepted = free_port(), []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        await reader.readuntil(b"}]}")
        writer.write(answer)
        # The next call is on its way when this closes: it gets no word back.
        await reader.readuntil(b"}]}")
        writer.close()

    server = await asyncio.start_server(once, "127.0.0.1", port)
    wire = Wire("127.0.0.1", port, {}, None, is_stream=False)
    calls = [Call(0.0) for _ in range(3)]
    body = b'{"messages":[{"role":"user","content":"x"}]}'
    for call in calls[:2]:
        await wire.ask(body, call)
    server.close()
    wire.close()
    await wire.ask(body, calls[2])
    assert [call.error for call in calls] == ["", "", "no_connection"]
    assert len(accepted) == 2


async def test_stopping_leaves_what_is_under_way() -> None:
    async with answering(0.0, 5.0) as port:
        plan = Plan("m", concurrency=1, duration_s=60, is_stream=False)
        wire = Wire("127.0.0.1", port, {}, None, is_stream=False)
        running = Run(plan, bodies(plan), wire)
        task = asyncio.create_task(running.run())
        while not running.taken.calls:
            await asyncio.sleep(0.01)
        running.stop()
        taken = await asyncio.wait_for(task, 20)
        wire.close()
    assert (len(taken.calls), taken.abandoned, taken.open) == (1, 1, 0)


def test_the_command_without_a_mesh_says_so_in_a_line(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = CliRunner().invoke(app, ["bench", "--address", address, "--key", "x"])
    assert done.exit_code == 1
    assert "Nothing answers" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--even"], "--even goes with --rate"),
        (["--no-stream", "--slo-itl", "5"], "goes with streams"),
        (["--body", "x"], "JSON object"),
        (["--prompts", "/nonesuch"], "No such file"),
        (["--compare", "/nonesuch"], "No such file"),
        (["--address", "nowhere"], "no host and port"),
    ],
)
def test_wrong_options_end_before_anything_is_asked(options: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["bench", "--key", "x", *options])
    assert done.exit_code == 1
    assert said in done.output


def test_reports_are_written_and_compared(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor
    from threading import Event

    port, ended, ready = free_port(), Event(), Event()

    async def engine() -> None:
        async with serving("127.0.0.1", [port], _FAST):
            ready.set()
            await asyncio.to_thread(ended.wait, 60)

    first, second, html = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "b.html"
    command = ["bench", "m", "--address", f"127.0.0.1:{port}", "--key", "x", "--requests", "20"]
    with ThreadPoolExecutor(1) as pool:
        serving_it = pool.submit(asyncio.run, engine())
        try:
            assert ready.wait(10)
            done = CliRunner().invoke(app, [*command, "--json", str(first)])
            assert done.exit_code == 0, done.output
            earlier = json.loads(first.read_text())
            earlier["ms"]["e2e"]["p50"] /= 1000
            first.write_text(json.dumps(earlier))
            again = ["--json", str(second), "--html", str(html), "--compare", str(first)]
            done = CliRunner().invoke(app, [*command, *again])
        finally:
            ended.set()
            serving_it.result(10)
    assert done.exit_code == 1, done.output
    assert "worse" in done.output and "Verdict" in done.output
    assert json.loads(second.read_text())["calls"]["answered"] == 20
    assert "Verdict" in html.read_text()
