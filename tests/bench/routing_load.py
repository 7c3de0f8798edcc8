"""Asks questions at the times that they are due, however long the answers take."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httptools
import orjson
from routing_trace import Question

_LIMIT_S = 300.0


@dataclass(slots=True)
class Outcome:
    """What became of a question; times are seconds since it was due.

    Attributes:
        first_s: When the first token came; None for none.
        end_s: When the answer, or the failure, was complete.
        node: Who answered.
        prompt: Prompt tokens, by the usage in the answer.
        cached: Those of them that were cached.
        failure: Why it failed; empty where it did not.
    """

    tenant: int
    due_at: float
    first_s: float | None = None
    end_s: float = 0.0
    node: str = ""
    prompt: int = 0
    cached: int = 0
    answer: int = 0
    failure: str = ""
    status: int = 0
    tail: bytes = field(default=b"", repr=False)


class _Connection(asyncio.Protocol):
    """One keep-alive connection; carries one question at a time."""

    def __init__(self, idle: "list[_Connection]") -> None:
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._outcome: Outcome | None = None
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    async def ask(self, head: bytes, body: bytes, outcome: Outcome) -> None:
        self._outcome = outcome
        self._parser = httptools.HttpResponseParser(self)
        self._done = self._loop.create_future()
        assert self._transport is not None
        self._transport.write(head + body)
        await self._done

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-mesh-node" and self._outcome is not None:
            self._outcome.node = value.decode()

    def on_headers_complete(self) -> None:
        if self._outcome is not None:
            self._outcome.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        outcome = self._outcome
        if outcome is None:
            return
        if outcome.first_s is None and outcome.status == 200:
            outcome.first_s = self._loop.time() - outcome.due_at
        outcome.tail = (outcome.tail + body)[-2048:]

    def on_message_complete(self) -> None:
        self._finish("")
        self._idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self in self._idle:
            self._idle.remove(self)
        self._finish("connection lost")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _finish(self, failure: str) -> None:
        outcome, self._outcome = self._outcome, None
        if outcome is None:
            return
        outcome.end_s = self._loop.time() - outcome.due_at
        _read(outcome)
        outcome.failure = failure or outcome.failure
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


def _read(outcome: Outcome) -> None:
    """Takes usage and success from the end of an answer."""
    tail, outcome.tail = outcome.tail, b""
    if outcome.status != 200:
        outcome.failure = f"status {outcome.status}"
        return
    if not tail.endswith(b"data: [DONE]\n\n"):
        outcome.failure = "no end"
        return
    for event in tail.split(b"\n\n"):
        if event.startswith(b"data: {") and b'"usage":{' in event:
            usage = orjson.loads(event[6:])["usage"]
            outcome.prompt = usage["prompt_tokens"]
            outcome.answer = usage["completion_tokens"]
            outcome.cached = usage["prompt_tokens_details"]["cached_tokens"]
            return
    outcome.failure = "no usage"


class Load:
    """Sends questions to one address.

    Args:
        host: The front door.
        port: Its port.
        key_of: Returns a tenant's API key.
    """

    def __init__(self, host: str, port: int, key_of: Callable[[int], str]) -> None:
        self._host, self._port = host, port
        self._key_of = key_of
        self._idle: list[_Connection] = []

    async def run(self, questions: Sequence[Question]) -> list[Outcome]:
        """Asks each question when it is due, and returns what became of each, in order."""
        loop = asyncio.get_running_loop()
        bodies = [(q, orjson.dumps(q.body)) for q in questions]
        start = loop.time() + 0.1
        tasks = []
        outcomes = []
        for question, body in bodies:
            due_at = start + question.at_s
            if (wait_s := due_at - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            outcome = Outcome(question.tenant, due_at)
            outcomes.append(outcome)
            tasks.append(asyncio.create_task(self._ask(question, body, outcome)))
        await asyncio.gather(*tasks)
        return outcomes

    async def each(self, questions: Sequence[Question], at_once: int) -> list[Outcome]:
        """Asks all questions, so many at a time."""
        loop = asyncio.get_running_loop()
        gate = asyncio.Semaphore(at_once)

        async def one(question: Question) -> Outcome:
            async with gate:
                outcome = Outcome(question.tenant, loop.time())
                await self._ask(question, orjson.dumps(question.body), outcome)
                return outcome

        return await asyncio.gather(*(one(question) for question in questions))

    async def _ask(self, question: Question, body: bytes, outcome: Outcome) -> None:
        loop = asyncio.get_running_loop()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
            f"authorization: Bearer {self._key_of(question.tenant)}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode()
        connection = None
        try:
            async with asyncio.timeout(_LIMIT_S):
                if self._idle:
                    connection = self._idle.pop()
                else:
                    _, connection = await loop.create_connection(
                        lambda: _Connection(self._idle), self._host, self._port
                    )
                await connection.ask(head, body, outcome)
        except (OSError, TimeoutError, httptools.HttpParserError) as error:
            outcome.failure = type(error).__name__
            outcome.end_s = loop.time() - outcome.due_at
            if connection is not None:
                connection.close()

    def close(self) -> None:
        """Closes the connections."""
        for connection in list(self._idle):
            connection.close()
