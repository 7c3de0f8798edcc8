import os
from pathlib import Path

import pytest

from services.kit.usage_log import Kind, LogInUseError, Position, UsageLog


def _payloads(log: UsageLog) -> list[tuple[int, bytes]]:
    return [(record.kind, record.payload) for record in log.records(log.start)]


def test_a_reopened_log_holds_what_was_written(tmp_path: Path) -> None:
    log = UsageLog(tmp_path / "spool")
    log.append(Kind.BEGUN, b"one")
    log.append(Kind.FINISHED, b"two")
    log.close()

    again = UsageLog(tmp_path / "spool")
    assert _payloads(again) == [(Kind.BEGUN, b"one"), (Kind.FINISHED, b"two")]
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    again.close()


@pytest.mark.parametrize("tail", [b"\x07", b"\x05\0\0\0\0\0\0\0\x01hello", b"\xff" * 40])
def test_a_torn_tail_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    log = UsageLog(tmp_path)
    log.append(Kind.FINISHED, b"whole")
    log.close()
    with next(tmp_path.glob("*.seg")).open("ab") as file:
        file.write(tail)

    again = UsageLog(tmp_path)
    again.append(Kind.FINISHED, b"next")
    assert _payloads(again) == [(Kind.FINISHED, b"whole"), (Kind.FINISHED, b"next")]
    again.close()


def test_two_logs_do_not_share_a_directory(tmp_path: Path) -> None:
    log = UsageLog(tmp_path)
    with pytest.raises(LogInUseError):
        UsageLog(tmp_path)
    log.close()
    UsageLog(tmp_path).close()


def test_rotation_carries_what_runs_and_old_segments_can_go(tmp_path: Path) -> None:
    log = UsageLog(tmp_path, segment_bytes=20)
    log.append(Kind.BEGUN, b"a long request")
    assert log.is_segment_full
    log.rotate([b"a long request"])
    assert not log.is_segment_full
    log.drop_before(log.end.segment)

    assert _payloads(log) == [(Kind.BEGUN, b"a long request")]
    assert len(list(tmp_path.glob("*.seg"))) == 1
    log.drop_before(99)
    assert len(list(tmp_path.glob("*.seg"))) == 1
    log.close()


def test_reading_from_a_position_skips_what_is_before_it(tmp_path: Path) -> None:
    log = UsageLog(tmp_path)
    log.append(Kind.FINISHED, b"one")
    position = log.end
    log.append(Kind.FINISHED, b"two")
    assert [record.payload for record in log.records(position)] == [b"two"]
    assert list(log.records(log.end)) == []
    log.close()


def test_a_write_that_fails_leaves_the_log_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = UsageLog(tmp_path)
    log.append(Kind.FINISHED, b"one")
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))
    with pytest.raises(OSError, match="full"):
        log.append(Kind.FINISHED, b"two")
    monkeypatch.undo()
    log.append(Kind.FINISHED, b"three")
    assert _payloads(log) == [(Kind.FINISHED, b"one"), (Kind.FINISHED, b"three")]
    log.close()


def test_a_payload_over_64_kib_is_refused(tmp_path: Path) -> None:
    log = UsageLog(tmp_path)
    with pytest.raises(ValueError, match="65536"):
        log.append(Kind.BEGUN, bytes(65537))
    assert log.end == Position(1, 0)
    log.close()
