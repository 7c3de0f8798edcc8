"""What becomes of events that auth does not take."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from infermesh.auth.v1 import audit_service_pb2 as pb
from services.kit.audit_sender import delivering, reporting, spooled


class Auth:
    """Takes events, but those with bad ids."""

    def __init__(self, *bad: str) -> None:
        self.bad = bad
        self.code: grpc.StatusCode | None = None
        self.taken: list[str] = []
        self.calls = 0

    async def take(self, events: Sequence[pb.AuditEvent]) -> object:
        self.calls += 1
        if self.code is not None:
            raise _error(self.code)
        if any(event.event_id in self.bad for event in events):
            raise _error(grpc.StatusCode.INVALID_ARGUMENT)
        self.taken += [event.event_id for event in events]
        return None


def _error(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "no")


def events(*ids: str) -> list[pb.AuditEvent]:
    return [pb.AuditEvent(event_id=event_id) for event_id in ids]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_one_that_is_invalid_is_set_aside_and_the_rest_gets_through(tmp_path: Path) -> None:
    auth = Auth("b", "e")
    await delivering(auth.take, tmp_path)(events(*"abcdefg"))
    assert auth.taken == ["a", "c", "d", "f", "g"]
    rejected = (tmp_path / "rejected").read_text()
    assert ('event_id: "b"' in rejected, 'event_id: "a"' in rejected) == (True, False)
    assert (tmp_path / "rejected").stat().st_mode & 0o777 == 0o600


async def test_what_is_set_aside_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "rejected"
    path.write_bytes(b"x" * 4 * 1024 * 1024)
    await delivering(Auth("a").take, tmp_path)(events("a"))
    assert path.stat().st_size < 100
    assert names(tmp_path) == {"rejected", "rejected.old"}


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED])
async def test_any_other_refusal_is_a_reason_to_wait(tmp_path: Path, code: grpc.StatusCode) -> None:
    auth = Auth()
    auth.code = code
    with pytest.raises(grpc.aio.AioRpcError):
        await delivering(auth.take, tmp_path)(events("a", "b"))
    assert (auth.calls, names(tmp_path)) == (1, set())


async def test_what_waits_is_sent_by_the_next_process(tmp_path: Path) -> None:
    auth = Auth()
    auth.code = grpc.StatusCode.UNAVAILABLE
    async with spooled(auth.take, tmp_path) as recorder:
        recorder.outcome("/x", {}, "OK", resource="a\0b")
    assert auth.taken == []
    auth.code = None
    async with spooled(auth.take, tmp_path):
        await asyncio.sleep(0)
    assert len(auth.taken) == 1


async def test_without_auth_nothing_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with reporting(None, tmp_path / "state") as recorder:
        assert recorder is None
    assert "INFERMESH_AUTH_ADDRESS" in caplog.text
    assert not (tmp_path / "state").exists()
