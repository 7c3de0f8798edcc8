"""One call: its messages in both directions, its handler, and how it ends."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import grpc

from services.kit.grpc_server import wire
from services.kit.grpc_server.answer import Answer, Method
from services.kit.grpc_server.context import raise_cancelled
from services.kit.grpc_server.inbox import HEAD_BYTES, Inbox
from services.kit.grpc_server.limits import RefusedError

log = logging.getLogger(__name__)


class Call(Answer):
    """A call, and the context that its handler gets."""

    _inbox: Inbox | None = None
    _has_request = False
    _reader: asyncio.Future[None] | None = None
    _unacknowledged = 0
    _task: asyncio.Task[None] | None = None
    _timer: asyncio.TimerHandle | None = None
    _checks = 0

    # --- what comes in, from the connection ---

    def begin(self, method: Method) -> None:
        """Takes the handler; starts it at once where it reads a stream."""
        self._method = method
        if method.takes_stream:
            self._inbox = Inbox(self.connection, self._request.encoding, is_stream=True)
            self._start(method, self._requests(method))

    def feed(self, data: bytes, is_last: bool) -> None:
        """Takes in a part of the request.

        Raises:
            ProtocolError: There is more of it than the peer may send.
        """
        if self._is_done:
            return
        if is_last:
            self.is_half_closed = True
        inbox = self._inbox
        if inbox is None and not self._has_request:
            size = len(data) - HEAD_BYTES
            # Nearly every request is one message in one frame.
            if size >= 0 and data[0] == 0 and int.from_bytes(data[1:5], "big") == size:
                self._take(data[5:])
                return
        try:
            if self._method is not None and self._method.takes_stream:
                self._feed_stream(data)
            else:
                self._feed_one(data, is_last)
        except RefusedError as error:
            self.refuse(error.code, error.details)

    def _feed_stream(self, data: bytes) -> None:
        inbox = self._inbox
        assert inbox is not None  # noqa: S101 - `begin` makes it
        if len(inbox) + len(data) > self.connection.stream_window:
            raise wire.ProtocolError(wire.FLOW_CONTROL_ERROR, "more DATA than the window allows")
        if data:
            inbox.add(data)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _feed_one(self, data: bytes, is_last: bool) -> None:
        inbox = self._inbox
        if data:
            self._checks = 0
            if self._has_request:
                raise RefusedError(
                    grpc.StatusCode.INTERNAL, "The request holds more than one message."
                )
            if inbox is None:
                self._inbox = inbox = Inbox(
                    self.connection, self._request.encoding, is_stream=False
                )
            inbox.add(data)
            if (message := inbox.next()) is not None:
                if inbox:
                    raise RefusedError(
                        grpc.StatusCode.INTERNAL, "The request holds more than one message."
                    )
                self._take(message)
        if is_last and not self._has_request:
            what = "ends within a message" if inbox else "holds no message"
            raise RefusedError(grpc.StatusCode.INTERNAL, f"The request {what}.")

    def skip(self, count: int) -> None:
        """Takes note of padding, which takes of the window and means nothing."""
        self._acknowledge(count)

    def _take(self, message: bytes) -> None:
        self._has_request = True
        method = self._method
        assert method is not None  # noqa: S101 - calls without one are over
        try:
            request = message if method.parse is None else method.parse(message)
        except Exception as error:
            log.debug("a request does not parse", extra={"error": str(error)})
            # Not INTERNAL, which gRPC's own servers say: Envoy would try every other node with it.
            self.refuse(grpc.StatusCode.INVALID_ARGUMENT, "The request does not parse.")
            return
        self._start(method, request)

    def _start(self, method: Method, request: Any) -> None:
        if method.is_plain:
            self._answer_now(method, request)
            return
        self._spawn(self._run(method, request))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        loop = self.connection.loop
        if self._deadline is not None:
            self._timer = loop.call_later(self.time_remaining(), self._expire)
        self._task = loop.create_task(work)

    def reset(self) -> None:
        """Ends the call because the caller does not want it any more."""
        if not self._is_done:
            self._is_cancelled = True
            self._close()
            self._cancel()

    def stop(self) -> None:
        """Ends the call because the server stops; its caller may try another."""
        self._break_off(grpc.StatusCode.UNAVAILABLE, "The service is stopping.")

    def check(self) -> None:
        """Ends the call if its request is not whole, and nothing has come for long."""
        if self._has_request or self._task is not None:
            return
        self._checks += 1
        if self._checks > self.connection.shared.limits.stuck_checks:
            self._break_off(
                grpc.StatusCode.DEADLINE_EXCEEDED, "The rest of the request does not come."
            )

    def _expire(self) -> None:
        self._break_off(grpc.StatusCode.DEADLINE_EXCEEDED, "The deadline is over.")

    def _break_off(self, code: grpc.StatusCode, details: str) -> None:
        if not self._is_done:
            self._is_cancelled = True
            self._trailing = ()
            self.refuse(code, details)

    def refuse(self, code: grpc.StatusCode, details: str) -> None:
        """Ends the call with a status, whatever its handler does."""
        if not self._is_done:
            self._code, self._details = code, details
            self._end()
            self._cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self.connection.see_off(self._task)

    # --- running the handler ---

    def _answer_now(self, method: Method, request: Any) -> None:
        """Runs a handler that is a plain function, with no task around it."""
        try:
            answer = method.act(request, self)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # as in `_run`
            self._fail()
            return
        if isinstance(answer, asyncio.Future):
            answer.add_done_callback(lambda later: self._answer_with(method, later.result))
        else:
            self._answer_with(method, lambda: answer)

    def _answer_with(self, method: Method, get: Callable[[], Any]) -> None:
        try:
            answer = get()
            message = answer if method.serialize is None else method.serialize(answer)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # as in `_run`
            self._fail()
            return
        if not self._finish(message):
            self._spawn(self._finish_slowly(message))

    async def _run(self, method: Method, request: Any) -> None:
        try:
            if method.gives_stream:
                await self._run_stream(method.act(request, self))
                if not self._is_done:
                    self._end()
                return
            answer = await method.act(request, self)
            message = answer if method.serialize is None else method.serialize(answer)
            if not self._finish(message):
                await self._finish_slowly(message)
        except asyncio.CancelledError:
            # The call is over already where its caller left or its time is up. Where the handler
            # itself gave up, as at a stop, the caller is told.
            if not self._is_done:
                self._code = self._code or grpc.StatusCode.CANCELLED
                self._end()
        except grpc.aio.AbortError:
            if not self._is_done:
                self._end()
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException:  # a panic in a module written in Rust is no `Exception`
            self._fail()

    async def _run_stream(self, answers: AsyncIterator[Any] | Awaitable[None]) -> None:
        if not isinstance(answers, AsyncIterator):
            await answers
            return
        try:
            async for answer in answers:
                await self.write(answer)
        except BaseException:
            # The generator may stand at its `yield`; what it holds is let go now, not at some time.
            close = getattr(answers, "aclose", None)
            if close is not None:
                await close()
            raise

    def _fail(self) -> None:
        if self._is_done:
            log.debug("a handler failed after its call was over", exc_info=True)
            return
        log.exception("a handler failed")
        self._code, self._details = grpc.StatusCode.UNKNOWN, "The handler failed."
        self._end()

    # --- messages, for handlers ---

    async def _requests(self, method: Method) -> AsyncIterator[Any]:
        while (message := await self._next()) is not None:
            yield message if method.parse is None else method.parse(message)

    async def read(self) -> Any:
        """Returns the next message, or `EOF`."""
        method = self._method
        if method is None or not method.takes_stream:
            raise grpc.aio.UsageError("The request is no stream.")
        message = await self._next()
        if message is None:
            return grpc.aio.EOF
        return message if method.parse is None else method.parse(message)

    async def _next(self) -> bytes | None:
        inbox = self._inbox
        assert inbox is not None  # noqa: S101 - `begin` makes it
        while True:
            if self._is_done:
                await raise_cancelled()
            before = len(inbox)
            try:
                message = inbox.next()
                if message is None and self.is_half_closed:
                    if inbox:
                        raise RefusedError(
                            grpc.StatusCode.INTERNAL, "The request ends within a message."
                        )
                    return None
            except RefusedError as error:
                self.refuse(error.code, error.details)
                continue
            if message is not None:
                self._acknowledge(before - len(inbox))
                return message
            self._reader = self.connection.loop.create_future()
            await self._reader

    def _acknowledge(self, count: int) -> None:
        self._unacknowledged += count
        if self._unacknowledged > self.connection.stream_window // 2 and not self.is_half_closed:
            self.connection.send(wire.window_frame(self.stream_id, self._unacknowledged))
            self._unacknowledged = 0

    def _close(self) -> None:
        self._is_done = True
        if self._inbox is not None:
            self._inbox.close()
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        self.connection.forget(self)
        if self._callbacks:
            self._call_back()
