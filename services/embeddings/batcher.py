"""Merges texts of calls that come at the same time into calls to a node.

A text goes at once when nothing is under way for its model. Otherwise it waits for company: until
a batch is full, the window is over, or, when as many calls as allowed are under way, one ends.
Requests take turns, so a long one does not hold up a short one. Equal texts of a batch go once.
"""

import asyncio
import logging
import re
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from infermesh.errors.v1 import errors_pb2
from services.embeddings.vectors import Input, Vector
from services.kit.errors import MeshError

log = logging.getLogger(__name__)

Call = Callable[[str, Sequence[Input], str, int | None], Awaitable[Sequence[Vector]]]
"""Takes model, texts (or the tokens of all), request id and dimensions (None is all) to a node;
returns a vector for each text."""

MAX_WAITING_TEXTS = 20_000
"""Over all models; a call that would exceed it is refused."""

_MAX_BATCH_CHARS = 1024 * 1024

_INDEX = re.compile(r"(?:token_)?inputs?\[(\d+)\]")


@dataclass(frozen=True)
class Limits:
    """Bounds of batches: texts of a call, seconds to wait for company, calls under way."""

    texts: int
    window_s: float
    calls: int


@dataclass(eq=False)
class _Job:
    """What is to be done for one request."""

    texts: Mapping[Input, str]
    request_id: str
    done: asyncio.Future[Mapping[Input, Vector]]
    vectors: dict[Input, Vector] = field(default_factory=dict)

    def add(self, text: Input, vector: Vector) -> None:
        self.vectors[text] = vector
        if len(self.vectors) == len(self.texts) and not self.done.done():
            self.done.set_result(self.vectors)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


_Batch = dict[Input, list[_Job]]

_Kind = tuple[str, int | None, bool]
"""What goes together: the model, the dimensions, and whether tokens stand for texts."""


class Batcher:
    """Embeds texts, together with those of other requests for the same model."""

    def __init__(self, call: Call, limits: Limits) -> None:
        self._call = call
        self._limits = limits
        self._lanes: dict[_Kind, _Lane] = {}

    async def embed(
        self,
        model: str,
        texts: Mapping[Input, str],
        request_id: str,
        dimensions: int | None = None,
    ) -> Mapping[Input, Vector]:
        """Returns the vectors of the texts.

        Cancelling takes texts that have not been sent out of the batch, and stops a call that
        nobody else waits for.

        Args:
            model: The model's name.
            texts: Each text once, with the name of the field that it came in; all texts or all
                tokens. An error that lies in a text names that field. Example:
                `{"hello": "input[0]"}`.
            request_id: The id that the call carries if this request is the batch's first.
            dimensions: How many components the vectors are to have; None is all.

        Raises:
            MeshError: The node's refusal or failure; `NO_NODE_AVAILABLE` when too much waits.
        """
        waiting = sum(lane.waiting for lane in self._lanes.values())
        if waiting + len(texts) > MAX_WAITING_TEXTS:
            raise MeshError(
                errors_pb2.ERROR_REASON_NO_NODE_AVAILABLE,
                "Too many texts wait to be embedded; try again later.",
            )
        kind = (model, dimensions, not isinstance(next(iter(texts)), str))
        lane = self._lanes.get(kind)
        if lane is None:
            lane = self._lanes[kind] = _Lane(kind, self._call, self._limits, self._drop_lane)
        job = _Job(texts, request_id, asyncio.get_running_loop().create_future())
        lane.add(job)
        try:
            return await job.done
        except BaseException:
            lane.withdraw(job)
            raise

    async def close(self) -> None:
        """Stops the calls that are under way."""
        await asyncio.gather(*(lane.close() for lane in list(self._lanes.values())))

    def _drop_lane(self, lane: "_Lane") -> None:
        # A lane may hear of the end of its last request when the next has its successor.
        if self._lanes.get(lane.kind) is lane:
            del self._lanes[lane.kind]


class _Lane:
    """The texts that wait for one model and form, and the calls that are under way for them."""

    def __init__(
        self, kind: _Kind, call: Call, limits: Limits, on_empty: "Callable[[_Lane], None]"
    ) -> None:
        self.kind = kind
        self._call = call
        self._limits = limits
        self._on_empty = on_empty
        self._loop = asyncio.get_running_loop()
        self._queue: OrderedDict[_Job, deque[Input]] = OrderedDict()
        self._running: dict[asyncio.Task[None], _Batch] = {}
        self._timer: asyncio.Handle | None = None
        self.waiting = 0

    def add(self, job: _Job) -> None:
        self._queue[job] = deque(job.texts)
        self.waiting += len(job.texts)
        if not self._running and self._timer is None:
            # What comes in the same turn of the loop goes together.
            self._timer = self._loop.call_soon(self._on_timer)
        elif self._running:
            self._start_batches(is_due=False)

    def withdraw(self, job: _Job) -> None:
        self.waiting -= len(self._queue.pop(job, ()))
        for task, batch in self._running.items():
            if all(job.done.done() for jobs in batch.values() for job in jobs):
                task.cancel()
        self._drop_when_empty()

    async def close(self) -> None:
        for job in [*self._queue, *(job for b in self._running.values() for job in _jobs(b))]:
            job.done.cancel()
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_timer(self) -> None:
        self._timer = None
        self._start_batches(is_due=True)
        self._drop_when_empty()

    def _start_batches(self, *, is_due: bool) -> None:
        while (
            self._queue
            and len(self._running) < self._limits.calls
            and (is_due or not self._running or self.waiting >= self._limits.texts)
        ):
            batch = self._take()
            task = self._loop.create_task(self._run(batch))
            self._running[task] = batch
            task.add_done_callback(self._on_end)
        if self._queue and self._timer is None and len(self._running) < self._limits.calls:
            self._timer = self._loop.call_later(self._limits.window_s, self._on_timer)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        # What waits while all calls are taken has waited long enough when one ends.
        was_full = len(self._running) >= self._limits.calls
        del self._running[task]
        self._start_batches(is_due=was_full)
        self._drop_when_empty()

    def _take(self) -> _Batch:
        batch: _Batch = {}
        size = 0
        while self._queue and len(batch) < self._limits.texts:
            job, texts = next(iter(self._queue.items()))
            text = texts[0]
            if text not in batch:
                size += len(text)
                if batch and size > _MAX_BATCH_CHARS:
                    break
            texts.popleft()
            self.waiting -= 1
            batch.setdefault(text, []).append(job)
            if texts:
                self._queue.move_to_end(job)
            else:
                del self._queue[job]
        return batch

    async def _run(self, batch: _Batch) -> None:
        jobs = _jobs(batch)
        try:
            model, dimensions, _ = self.kind
            vectors = await self._call(model, list(batch), jobs[0].request_id, dimensions)
            answers = list(zip(vectors, batch.items(), strict=True))
        except MeshError as error:
            # A refusal may lie in one text: only the request that it belongs to may see it.
            if error.http_status != 400:
                for job in jobs:
                    job.fail(_copy(error, error.param))
            elif len(jobs) == 1:
                jobs[0].fail(_translated(error, list(batch), jobs[0]))
            else:
                await asyncio.gather(
                    *(
                        self._run({text: [job] for text in batch if job in batch[text]})
                        for job in jobs
                        if not job.done.done()
                    )
                )
            return
        except Exception as error:
            log.exception("a call to a node failed")
            for job in jobs:
                job.fail(error)
            return
        for vector, (text, owners) in answers:
            for job in owners:
                job.add(text, vector)

    def _drop_when_empty(self) -> None:
        if not self._queue and not self._running:
            if self._timer is not None:
                self._timer.cancel()
            self._on_empty(self)


def _jobs(batch: _Batch) -> Sequence[_Job]:
    return list(dict.fromkeys(job for jobs in batch.values() for job in jobs))


def _copy(error: MeshError, param: str | None) -> MeshError:
    """Returns an error of its own for each request: a raised exception keeps its traceback."""
    return MeshError(error.reason, error.message, param=param, metadata=error.metadata)


def _translated(error: MeshError, sent: Sequence[Input], job: _Job) -> MeshError:
    """Returns the error with the field of the request in place of that of the batch.

    The place in the batch is taken out of the metadata too: it says how many texts others sent.
    """
    match = _INDEX.fullmatch(error.param or "")
    if match is None or int(match[1]) >= len(sent):
        return _copy(error, error.param)
    param = job.texts[sent[int(match[1])]]
    metadata = dict(error.metadata)
    own = _INDEX.fullmatch(param)
    if "index" in metadata and own is not None:
        metadata["index"] = own[1]
    message = error.message.replace(match[0], param)
    return MeshError(error.reason, message, param=param, metadata=metadata)
