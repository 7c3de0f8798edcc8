"""A line that a worker has to run."""

from typing import NamedTuple

from services.jobs.batches.requests import request_id
from services.jobs.batches.store import Batch


class Claim(NamedTuple):
    """A line that a worker has to run.

    Args:
        batch: Its batch.
        number: Its place in the input.
        custom_id: The caller's name for it.
        body: The request.
        tries: Which try this is, from 1.
    """

    batch: Batch
    number: int
    custom_id: str | None
    body: bytes
    tries: int

    @property
    def request_id(self) -> str:
        """The id under which it is in the ledger."""
        return request_id(self.batch.id, self.number, self.tries)
