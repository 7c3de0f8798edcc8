"""A connection as the transport sees it: its life, what waits to be sent, what it holds."""

import abc
import asyncio
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import grpc

from services.kit.grpc_server import wire
from services.kit.grpc_server.limits import RefusedError, Shared
from services.kit.grpc_server.peer_socket import keep_alive, peer_name
from services.kit.grpc_server.wire import ProtocolError

if TYPE_CHECKING:
    from services.kit.grpc_server.call import Call

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 * 1024
"""Told to the peer; one that sends more all the same is cut off at twice that."""

# What is sent within one turn of the loop leaves together, once it is as long as this at once.
_MAX_UNSENT_BYTES = 64 * 1024

_LAST_PING = b"goodbye."
# After that, a peer that does not answer the last ping is taken to have got the GOAWAY before it.
_LAST_PING_S = 1.0


class Link(asyncio.Protocol):
    """The part of a connection that knows nothing of frames that come in.

    Args:
        opened: Told when the connection stands.
        closed: Told when it is gone.
        shared: What it has together with the server's other connections.
    """

    def __init__(
        self, opened: Callable[[Any], None], closed: Callable[[Any], None], shared: Shared
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.shared = shared
        # A message that is the whole request needs no more than one window.
        self.stream_window = shared.max_message_bytes + wire.DEFAULT_WINDOW
        self.is_paused = False
        self.peer = ""
        self.calls: dict[int, Call] = {}
        self._opened = opened
        self._closed = closed
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._out: list[bytes] = []
        self._out_size = 0
        self._is_receiving = False
        self._has_greeted = False
        self._last_stream_id = 0
        self._is_closing = False
        self._is_turn_over = False
        self._is_stopping = False
        self._last_ping: asyncio.TimerHandle | None = None
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}
        self._held = 0
        self._leaving = 0
        self._checks = 0
        self._unsent = 0

    @abc.abstractmethod
    def _frames(self, data: bytes) -> bytes:
        """Takes in whole frames; returns what is left of an unfinished one."""

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says first what this side takes."""
        self._transport = cast(asyncio.Transport, transport)
        self.peer = peer_name(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            keep_alive(sock)
        self._transport.write(
            wire.settings_frame(
                (
                    (wire.SETTINGS_MAX_CONCURRENT_STREAMS, self.shared.limits.streams),
                    (wire.SETTINGS_INITIAL_WINDOW_SIZE, self.stream_window),
                    (wire.SETTINGS_MAX_HEADER_LIST_SIZE, MAX_HEADER_BYTES),
                )
            )
            + wire.window_frame(0, wire.MAX_WINDOW - wire.DEFAULT_WINDOW)
        )
        self._opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends all calls: nobody waits for them any more."""
        self._is_closing = True
        self._transport = None
        self._rest = b""
        self._out.clear()
        if self._last_ping is not None:
            self._last_ping.cancel()
        self._reset_all()
        self._closed(self)

    def pause_writing(self) -> None:
        """Lets writers wait until the peer has read."""
        self.is_paused = True

    def resume_writing(self) -> None:
        """Lets writers go on."""
        self.is_paused = False
        self.wake_all()

    def data_received(self, data: bytes) -> None:
        """Takes in frames, or parts of them."""
        if self._is_closing:
            return
        if self._rest:
            data = self._rest + data
        if self._is_turn_over:
            self._rest = data
            return
        self._is_receiving = True
        try:
            self._rest = self._frames(data)
        except ProtocolError as error:
            self.shared.broken += 1
            self.shared.last_break = str(error)
            self._break_off(error.code)
        except Exception:
            log.exception("a connection failed")
            self._break_off(wire.INTERNAL_ERROR)
        finally:
            self._is_receiving = False
        if self._out:
            self._flush()

    def _break_off(self, code: int) -> None:
        self._rest = b""
        self.send(wire.goaway_frame(self._last_stream_id, code))
        self.close()
        self._reset_all()

    def _reset_all(self) -> None:
        for call in list(self.calls.values()):
            call.reset()

    def _next_turn(self) -> None:
        self._is_turn_over = False
        self.data_received(b"")
        if not self._is_turn_over and not self._is_closing and self._transport is not None:
            self._transport.resume_reading()

    # --- for calls ---

    def send(self, data: bytes) -> None:
        """Sends bytes as they are; forgets them where the peer is gone.

        They leave in this turn of the loop or the next, in one piece with what else is sent until
        then: on a loopback, what sending costs is the call of the kernel, however little it takes.
        """
        if self._transport is None:
            return
        if not self._out and not self._is_receiving:
            self.loop.call_soon(self._flush)
        self._out.append(data)
        self._out_size += len(data)
        if self._out_size > _MAX_UNSENT_BYTES:
            self._flush()

    def _flush(self) -> None:
        out, transport = self._out, self._transport
        if not out or transport is None:
            return
        self._out = []
        self._out_size = 0
        transport.write(out[0] if len(out) == 1 else b"".join(out))
        # DATA waits while the peer does not read. What no window bounds does not: it is bound here.
        if self.is_paused and transport.get_write_buffer_size() > self.shared.limits.unread_bytes:
            self.abort()

    async def changed(self, stream_id: int) -> None:
        """Waits until there may be room to send more on a stream, or the stream is gone."""
        future = self.loop.create_future()
        self._waiting.setdefault(stream_id, []).append(future)
        await future

    def hold(self, count: int) -> None:
        """Takes note of bytes that are held until they are read, or that are no longer.

        Raises:
            RefusedError: `UNAVAILABLE`: there are too many.
        """
        shared = self.shared
        limit = shared.limits.held_bytes
        if count > 0 and (shared.held + count > limit or self._held + count > limit // 2):
            raise RefusedError(grpc.StatusCode.UNAVAILABLE, "The service holds too many requests.")
        self._held += count
        shared.held += count

    def end_turn(self) -> None:
        """Lets other connections go first, before more frames of this one are handled."""
        if not self._is_turn_over and self._transport is not None and not self._is_closing:
            self._is_turn_over = True
            self._transport.pause_reading()
            self.loop.call_soon(self._next_turn)

    def forget(self, call: "Call") -> None:
        """Takes note that a call is over."""
        if self.calls.pop(call.stream_id, None) is not None:
            self.shared.calls -= 1
        if self._waiting:
            self._wake(call.stream_id)
        if not self.calls and self.is_drained():
            self.close()

    def see_off(self, task: asyncio.Task[Any]) -> None:
        """Takes note of a handler that was cancelled, until it has cleaned up."""
        self._leaving += 1
        self.shared.leaving.add(task)
        task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[Any]) -> None:
        self._leaving -= 1
        self.shared.leaving.discard(task)

    # --- for the server ---

    def stop(self) -> None:
        """Takes no new calls from about now on; closes once those that are there are over.

        The peer is told first, and calls that were on their way are still served: the answer to a
        ping says that there are no more (RFC 9113, 6.8).
        """
        if not self._is_stopping:
            self._is_stopping = True
            self._last_ping = self.loop.call_later(_LAST_PING_S, self._stop_now)
            self.send(
                wire.goaway_frame(wire.MAX_WINDOW, wire.NO_ERROR)
                + wire.frame(wire.PING, 0, 0, _LAST_PING)
            )

    def is_drained(self) -> bool:
        """Says whether the peer knows that no more calls are taken."""
        return self._is_stopping and self._last_ping is None

    def last_ping_answered(self, payload: bytes) -> None:
        """Takes note of the answer to a ping."""
        if payload == _LAST_PING and self._last_ping is not None:
            self._stop_now()

    def _stop_now(self) -> None:
        if self._last_ping is not None:
            self._last_ping.cancel()
            self._last_ping = None
        self.send(wire.goaway_frame(self._last_stream_id, wire.NO_ERROR))
        if not self.calls:
            self.close()

    def finish(self) -> None:
        """Ends all calls with `UNAVAILABLE`, and closes."""
        self._is_stopping = True
        if not self._is_closing:
            self._stop_now()
        for call in list(self.calls.values()):
            call.stop()
        self.close()

    def close(self) -> None:
        """Closes once everything is sent."""
        self._is_closing = True
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Closes at once."""
        self._is_closing = True
        self._out.clear()
        if self._transport is not None:
            self._transport.abort()

    def check(self) -> None:
        """Ends what makes no progress; the server calls this every `check_s` seconds."""
        transport, limits = self._transport, self.shared.limits
        if transport is None:
            return
        unsent = transport.get_write_buffer_size() if self.is_paused else 0
        if self._is_closing or not self._has_greeted:
            self._checks += 1
            allowed = limits.greeting_checks
        else:
            self._checks = self._checks + 1 if unsent and unsent == self._unsent else 0
            allowed = limits.stuck_checks
        self._unsent = unsent
        if self._checks > allowed:
            self.abort()
            return
        for call in list(self.calls.values()):
            call.check()

    def _wake(self, stream_id: int) -> None:
        for future in self._waiting.pop(stream_id, ()):
            if not future.done():
                future.set_result(None)

    def wake_all(self) -> None:
        """Lets all writers look again whether there is room."""
        for stream_id in list(self._waiting):
            self._wake(stream_id)
