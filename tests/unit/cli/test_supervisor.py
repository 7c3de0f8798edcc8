import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from services.cli import part as part_module
from services.cli import ports
from services.cli import running as running_module
from services.cli.keeper import MAX_FIRST_TRIES, Backoff, PartState, PartStatus
from services.cli.part import MAX_LOG_BYTES, Part
from services.cli.supervisor import StartError, Supervisor

IGNORES_SIGTERM = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
REPOSITORY = Path(__file__).parents[3]


@asynccontextmanager
async def running(
    *parts: Part, on_change: Callable[[PartStatus], None] | None = None
) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(parts, on_change)
    try:
        await supervisor.start()
        yield supervisor
    finally:
        await supervisor.stop(limit_s=1, wave_s=0.3)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_backoff_doubles_to_a_limit_and_forgets_after_a_good_run():
    backoff = Backoff(first_s=0.2, most_s=5, reset_after_s=30)
    delays = [backoff.next_delay_s(lived_s=1) for _ in range(7)]
    assert delays == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])
    assert backoff.next_delay_s(lived_s=31) == 0.2
    assert backoff.next_delay_s(lived_s=1) == 0.4


async def test_parts_start_after_those_they_need(make_part):
    seen = []
    first_ready = asyncio.Event()

    async def probe() -> bool:
        return first_ready.is_set()

    asyncio.get_running_loop().call_later(0.2, first_ready.set)
    parts = [make_part("second", after=["first"]), make_part("first", probe=probe)]
    async with running(*parts, on_change=lambda s: seen.append((s.name, s.state))) as supervisor:
        assert {s.state for s in supervisor.states().values()} == {PartState.READY}
    assert seen.index(("first", PartState.READY)) < seen.index(("second", PartState.STARTING))


async def test_a_dead_part_comes_back_and_takes_no_other_down(make_part):
    async with running(make_part("a"), make_part("b", after=["a"])) as supervisor:
        old, other = supervisor.state("a").pid, supervisor.state("b").pid
        os.kill(old, signal.SIGKILL)
        await until(lambda: supervisor.state("a").state is PartState.BACKOFF)
        assert supervisor.state("a").last_exit == -signal.SIGKILL
        await until(lambda: supervisor.state("a").state is PartState.READY)
        assert supervisor.state("a").pid not in (None, old)
        assert supervisor.state("a").restarts == 1
        assert supervisor.state("b").pid == other


async def test_a_keeper_that_fails_ends_the_run(make_part):
    def broken(status: PartStatus) -> None:
        if status.state is PartState.BACKOFF:
            raise BrokenPipeError("the terminal is gone")

    async with running(make_part("a"), make_part("b"), on_change=broken) as supervisor:
        forever = asyncio.create_task(supervisor.run_forever())
        os.kill(supervisor.state("a").pid, signal.SIGKILL)
        with pytest.raises(BrokenPipeError, match="the terminal is gone"):
            await asyncio.wait_for(forever, 20)
        assert supervisor.state("b").state is PartState.READY


async def test_up_says_why_the_run_ended():
    async def ends(error: Exception | None) -> None:
        if error is not None:
            raise error

    for error, words in ((OSError("no space"), "OSError: no space"), (None, "All parts have")):
        task = asyncio.create_task(ends(error))
        await asyncio.wait({task})
        assert words in running_module._why(task)


async def test_a_part_that_cannot_start_is_given_up_and_named(make_part, monkeypatch):
    monkeypatch.setattr("services.cli.keeper.MAX_FIRST_TRIES", 2)

    async def never() -> bool:
        return False

    broken = make_part("broken", "print('bad setting'); raise SystemExit(2)", probe=never)
    with pytest.raises(StartError, match="broken did not start: exited with 2") as raised:
        async with running(make_part("fine"), broken):
            pass
    assert raised.value.part == "broken"
    assert broken.log_file.read_text() == "bad setting\n" * 2
    assert MAX_FIRST_TRIES == 5


async def test_a_missing_program_is_named(make_part, monkeypatch):
    monkeypatch.setattr("services.cli.keeper.MAX_FIRST_TRIES", 1)
    part = make_part("ghost")
    ghost = Part(**{**vars(part), "argv": ["/no/such/program"]})
    with pytest.raises(StartError, match="ghost did not start: cannot be started"):
        async with running(ghost):
            pass


async def test_a_part_that_is_never_ready_is_ended(make_part):
    async def never() -> bool:
        raise ConnectionRefusedError("refused")

    part = make_part("slow", probe=never, start_limit_s=0.2)
    with pytest.raises(StartError, match=r"not ready in 0\.2 s"):
        async with running(part):
            pass


async def test_parts_stop_in_reverse_order(make_part, tmp_path):
    order = tmp_path / "order"
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        f"    open({str(order)!r}, 'a').write(sys.argv[1]); sys.exit(0)\n"
        "signal.signal(15, end); open(sys.argv[2], 'w').close()\n"
        "while True: time.sleep(60)\n"
    )
    parts = []
    for name, after in (("a", ()), ("b", ("a",)), ("c", ("b",))):
        up = tmp_path / f"{name}.up"

        async def probe(up: Path = up) -> bool:
            return up.exists()  # noqa: ASYNC240

        part = make_part(name, code, after=after, probe=probe)
        parts.append(Part(**{**vars(part), "argv": [*part.argv, name, str(up)]}))
    async with running(*parts):
        pass
    assert order.read_text() == "cba"


async def test_stop_is_bounded_and_kills_what_does_not_listen(make_part, tmp_path):
    grandchild = tmp_path / "grandchild"
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {IGNORES_SIGTERM!r}])\n"
        f"open({str(grandchild)!r}, 'w').write(str(child.pid))\n" + IGNORES_SIGTERM
    )

    async def probe() -> bool:
        return grandchild.exists() and grandchild.read_text() != ""

    parts = [
        make_part("stubborn", code, probe=probe),
        make_part("other", IGNORES_SIGTERM, after=["stubborn"]),
    ]
    supervisor = Supervisor(parts)
    await supervisor.start()
    pids = [supervisor.state(part.name).pid for part in parts] + [int(grandchild.read_text())]
    began = time.monotonic()
    await supervisor.stop(limit_s=0.6, wave_s=0.2)
    assert time.monotonic() - began < 6
    await until(lambda: not any(map(is_alive, pids)))
    assert {s.state for s in supervisor.states().values()} == {PartState.STOPPED}


async def test_stop_during_the_start_leaves_nothing(make_part):
    async def never() -> bool:
        return False

    supervisor = Supervisor([make_part("a", probe=never), make_part("b", after=["a"])])
    starting = asyncio.create_task(supervisor.start())
    await until(lambda: supervisor.state("a").pid is not None)
    pid = supervisor.state("a").pid
    starting.cancel()
    await supervisor.stop(limit_s=1)
    assert not is_alive(pid)
    assert supervisor.state("b").state is PartState.STOPPED


def test_parts_that_wait_for_each_other_are_refused(make_part):
    with pytest.raises(ValueError, match="a, b"):
        Supervisor([make_part("a", after=["b"]), make_part("b", after=["a"])])


async def test_a_big_log_is_put_aside(make_part):
    part = make_part("chatty", "print('new'); import time; time.sleep(60)")
    part.log_file.parent.mkdir()
    with part.log_file.open("wb") as log:
        log.truncate(MAX_LOG_BYTES + 1)
    async with running(part):
        assert part.log_file.stat().st_size < 100
        assert part.log_file.with_suffix(".log.1").stat().st_size > MAX_LOG_BYTES


def test_parts_die_with_a_parent_that_is_killed(tmp_path):
    code = f"""
import asyncio, os, sys
from pathlib import Path
from services.cli import part as part_module
from services.cli.part import Part
from services.cli.supervisor import Supervisor

async def ready(): return True

def part(name, after=()):
    argv = [sys.executable, "-S", "-c", {IGNORES_SIGTERM!r}]
    return Part(name, argv, dict(os.environ), ready, Path({str(tmp_path)!r}) / name, after)

async def main():
    supervisor = Supervisor([part("a"), part("b", ("a",))])
    await supervisor.start()
    print(*(s.pid for s in supervisor.states().values()), flush=True)
    await supervisor.run_forever()

asyncio.run(main())
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(is_alive, pids))
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 5
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "a part outlived its parent"
        time.sleep(0.01)


def test_a_port_in_use_is_named_with_its_part(make_part):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        found = ports.conflicts([make_part("auth", ports={"gRPC": port}), make_part("free")])
    assert len(found) == 1
    assert f"port {port} (auth, gRPC) is in use" in found[0]
    assert f"(pid {os.getpid()})" in found[0]


def test_a_long_log_is_moved_away_while_the_part_writes_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(part_module, "MAX_LOG_BYTES", 10)
    log_file = tmp_path / "part.log"
    with log_file.open("ab", buffering=0) as log:
        log.write(b"a long line of text\n")
        part_module.rotate(log_file)
        log.write(b"next\n")
        part_module.rotate(log_file)
    assert log_file.read_bytes() == b"next\n"
    assert (tmp_path / "part.log.1").read_bytes() == b"a long line of text\n"
