"""Says something to callers who wait long, so that nothing between takes their stream for dead.

What is said is no part of an answer: every reader of server-sent events passes over it. But it is
a first byte, after which Envoy tries no other node: an error that comes later is an event in the
stream. So nothing is said before the engine has the request, nor where the operator wants none of
it.
"""

import asyncio

from services.inference.streams import Write, WriteNow

SSE = "text/event-stream"
COMMENT = b": keep-alive\n\n"
"""What OpenAI's clients are told: a comment."""

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
"""What Anthropic's clients are told: an event of their own dialect."""


class KeepAlive:
    """Stands between one stream and its caller, and fills its silences.

    Args:
        every_s: After how long a silence something is said, and said again. At least 0.
        write: Sends to the caller.
        text: What is said, an event or a comment in full.
        write_now: Sends to the caller where that can be done without waiting; None is never.

    Attributes:
        is_alone: Whether the caller has got something from here, and nothing of the answer.
    """

    def __init__(
        self, every_s: float, write: Write, text: bytes, write_now: WriteNow | None = None
    ) -> None:
        self.is_alone = False
        self._every_s = every_s
        self._write = write
        self._write_now = write_now
        self._text = text
        self._loop = asyncio.get_running_loop()
        self._said_at = 0.0
        self._has_answer = False
        self._timer: asyncio.TimerHandle | None = None
        self._speaking: asyncio.Task[None] | None = None
        # What is said must not stand in the middle of an event that a slow reader has half of.
        self._lock = asyncio.Lock()

    def start(self, _: object = None) -> None:
        """Begins to count: the engine has the request."""
        self._said_at = self._loop.time()
        self._timer = self._loop.call_later(self._every_s, self._check)

    def stop(self) -> None:
        """Says nothing from now on; what is on its way goes out."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def write(self, data: bytes, content_type: str = SSE) -> None:
        """Sends a part of the answer, or the error that it ended with."""
        async with self._lock:
            if self.is_alone and not content_type.startswith(SSE):
                data = _event(data)
            self._has_answer = True
            self.is_alone = False
            await self._write(data, content_type)
            self._said_at = self._loop.time()

    def write_now(self, data: bytes) -> bool:
        """Sends a further part of the answer if it need not wait; returns whether it did."""
        if self._write_now is None or self._lock.locked() or not self._write_now(data):
            return False
        self._said_at = self._loop.time()
        return True

    def _check(self) -> None:
        # One timer for a stream, moved on when it fires, is cheaper than one for every event.
        quiet_s = self._loop.time() - self._said_at
        if quiet_s < self._every_s:
            self._timer = self._loop.call_later(self._every_s - quiet_s, self._check)
            return
        # Where something waits for the caller to read, nobody needs to be told more.
        if not self._lock.locked():
            self._speaking = self._loop.create_task(self._speak())
        self._timer = self._loop.call_later(self._every_s, self._check)

    async def _speak(self) -> None:
        async with self._lock:
            self.is_alone = not self._has_answer
            await self._write(self._text, SSE)
            self._said_at = self._loop.time()


def _event(answer: bytes) -> bytes:
    """Returns the answer of an engine that cannot stream as the only event of a stream."""
    lines = b"".join(b"data: %b\n" % line for line in answer.splitlines())
    return lines + b"\ndata: [DONE]\n\n"
