"""The claim: kill -9 loses no finished event, and the ledger sees every request once."""

import asyncio
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

from infermesh.metrics.v1 import usage_service_pb2 as pb
from services.kit.usage_spool import open_spool

# Writes the number of each request to standard output after `finish` returned. Sends to a file,
# each batch with its length, as a ledger would commit it; some sends fail after they committed.
_CHILD = """
import asyncio, os, struct, sys
from pathlib import Path
from infermesh.metrics.v1 import usage_service_pb2 as pb
from services.kit.usage_spool import open_spool

directory, first = Path(sys.argv[1]), int(sys.argv[3])
ledger = os.open(sys.argv[2], os.O_APPEND | os.O_WRONLY)
sends = 0

async def send(request):
    global sends
    data = request.SerializeToString()
    os.write(ledger, struct.pack("<I", len(data)) + data)
    sends += 1
    if sends % 3 == 0:
        raise OSError("the answer is lost")

async def main():
    async with open_spool(directory, send) as spool:
        spool._log._segment_bytes = 20_000
        number = first
        while True:
            event = pb.UsageEvent(request_id=str(number), attempt=1, model="m" * 50)
            event.start_time.seconds = 1
            os.write(1, b"b%d\\n" % number)
            spool.begin(event)
            event.outcome = pb.OUTCOME_OK
            event.prompt_tokens = number
            if number % 7:
                spool.finish(event)
                os.write(1, b"f%d\\n" % number)
            number += 1
            if number % 20 == 0:
                await asyncio.sleep(0.001)

asyncio.run(main())
"""


def _ledger(path: Path) -> list[pb.UsageEvent]:
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack_from("<I", data)
        events.extend(pb.RecordUsageRequest.FromString(data[4 : 4 + length]).events)
        data = data[4 + length :]
    return events


def test_kill_9_loses_no_finished_event(tmp_path: Path) -> None:
    chance = random.Random(8)
    ledger_file, spool_dir = tmp_path / "ledger", tmp_path / "spool"
    ledger_file.touch()
    begun: set[int] = set()
    finished: set[int] = set()
    first = 1
    for _ in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, spool_dir, ledger_file, str(first)],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        time.sleep(chance.uniform(0.0, 0.5))
        os.kill(child.pid, signal.SIGKILL)
        rest, _ = child.communicate()
        lines += rest.splitlines()
        begun |= {int(line[1:]) for line in lines if line[:1] == b"b"}
        finished |= {int(line[1:]) for line in lines if line[:1] == b"f"}
        first = max(begun) + 1

    sent = _ledger(ledger_file)

    async def send(request: pb.RecordUsageRequest) -> None:
        sent.extend(request.events)

    async def send_the_rest() -> None:
        async with open_spool(spool_dir, send):
            pass

    asyncio.run(send_the_rest())
    assert len(list(spool_dir.glob("*.seg"))) == 1

    # What the ledger does: the first event of a request and attempt stays.
    kept: dict[int, pb.UsageEvent] = {}
    for event in sent:
        kept.setdefault(int(event.request_id), event)
    assert finished
    assert finished <= set(kept)
    assert set(kept) <= begun
    for number in finished:
        assert kept[number].outcome == pb.OUTCOME_OK
        assert kept[number].prompt_tokens == number
    # At each kill the request in hand may have finished, been noted or neither.
    unsure = begun - finished
    for number in unsure & set(kept):
        if number % 7 == 0:
            assert kept[number].outcome == pb.OUTCOME_LOST
            assert not kept[number].HasField("prompt_tokens")
    assert len({n for n in unsure if n % 7 == 0} - set(kept)) <= 5
