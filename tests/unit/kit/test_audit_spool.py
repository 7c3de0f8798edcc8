"""The audit spool's files: what waits, in which order, and how much may."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from infermesh.auth.v1 import audit_service_pb2 as pb
from services.kit.audit_spool import AuditSpool, open_log
from services.kit.errors import StoreUnavailableError
from services.kit.usage_log import UsageLog


class Chain:
    """Takes batches, or does not."""

    def __init__(self) -> None:
        self.is_away = False
        self.ids: list[str] = []

    async def take(self, batch: Sequence[pb.AuditEvent]) -> None:
        if self.is_away:
            raise StoreUnavailableError("away")
        self.ids += [event.event_id for event in batch]


def payload(number: int) -> bytes:
    return pb.AuditEvent(event_id=str(number), count=1).SerializeToString()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_what_waits_is_sent_in_order_by_the_next_process(tmp_path: Path) -> None:
    chain = Chain()
    chain.is_away = True
    spool = AuditSpool(UsageLog(tmp_path, segment_bytes=100), chain.take)
    for number in range(1200):
        spool.append(payload(number), True)
    with pytest.raises(StoreUnavailableError):
        await spool.send_waiting()
    await spool.close()
    assert chain.ids == []

    chain.is_away = False
    again = AuditSpool(UsageLog(tmp_path, segment_bytes=100), chain.take)
    again.append(payload(1200), True)
    await again.send_waiting()
    assert chain.ids == [str(number) for number in range(1201)]
    await again.send_waiting()
    await again.close()
    last = AuditSpool(UsageLog(tmp_path, segment_bytes=100), chain.take)
    await last.send_waiting()
    await last.close()
    assert len(chain.ids) == 1201
    assert sum(name.endswith(".seg") for name in names(tmp_path)) <= 4


async def test_the_backlog_is_bounded_and_administrative_calls_have_room_left(
    tmp_path: Path,
) -> None:
    chain, size = Chain(), len(payload(0))
    spool = AuditSpool(
        open_log(tmp_path),
        chain.take,
        max_backlog_bytes=3 * size,
        max_backlog_bytes_of_all=5 * size,
    )
    for _ in range(3):
        spool.append(payload(0), False)
    with pytest.raises(OSError, match="wait"):
        spool.append(payload(0), False)
    spool.append(payload(1), True)
    spool.append(payload(1), True)
    with pytest.raises(OSError, match="wait"):
        spool.append(payload(1), True)
    await spool.send_waiting()
    spool.append(payload(0), False)
    await spool.close()


async def test_processes_on_one_machine_have_folders_of_their_own(tmp_path: Path) -> None:
    one, two = open_log(tmp_path), open_log(tmp_path)
    assert names(tmp_path) == {"0", "1"}
    one.close()
    three = open_log(tmp_path)
    assert names(tmp_path) == {"0", "1"}
    two.close()
    three.close()
