"""A batch's input is read as a whole, or the batch fails."""

from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from services.jobs.batches.worker import Worker

URL = "/v1/chat/completions"


class Files:
    """Holds a file of two pieces, which is deleted after so many reads."""

    def __init__(self, reads: int) -> None:
        self.left = reads

    async def piece(self, file_id: str, number: int) -> bytes | None:
        self.left -= 1
        if self.left < 0 or number > 1:
            return None
        said = {"custom_id": f"line-{number}", "url": URL, "body": {"model": "m"}}
        return orjson.dumps(said) + b"\n"


class Work:
    """Remembers what became of the batch."""

    def __init__(self) -> None:
        self.ended = ""

    async def add(self, batch: Any, found: Any) -> None:
        pass

    async def begin(self, batch: Any, total: int) -> None:
        self.ended = f"begins with {total}"

    async def fail(self, batch: Any, errors: Any) -> None:
        self.ended = errors["data"][0]["code"]


@pytest.mark.parametrize(
    ("reads", "ended"), [(9, "begins with 2"), (0, "empty_file"), (1, "empty_file")]
)
async def test_a_file_that_is_deleted_meanwhile(reads: int, ended: str) -> None:
    work: Any = Work()
    files: Any = Files(reads)
    nothing: Any = None
    worker = Worker(work, files, nothing, nothing, nothing, max_lines=10, lease_s=1)
    batch: Any = SimpleNamespace(id="b", fields={"input_file_id": "f", "endpoint": URL})
    await worker._read(batch)
    assert work.ended == ended
