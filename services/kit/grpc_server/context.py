"""What a servicer sees of a call beside its messages: metadata, status, caller, and its end."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

import grpc

from services.kit.grpc_server import wire
from services.kit.grpc_server.request import Request

if TYPE_CHECKING:
    from services.kit.grpc_server.connection import Connection

log = logging.getLogger(__name__)

START = (
    (":status", "200"),
    ("content-type", "application/grpc"),
    ("grpc-accept-encoding", "identity,deflate,gzip"),
)
OK = wire.header_block((("grpc-status", "0"),))

_UNSENDABLE = (
    ("grpc-status", str(grpc.StatusCode.INTERNAL.value[0])),
    ("grpc-message", "The status of the call cannot be sent."),
)


class Context(grpc.aio.ServicerContext[Any, Any]):
    """The part of a call's context that has nothing to do with messages.

    Args:
        connection: Where the call came in.
        stream_id: Its stream there.
        request: What its headers say.
    """

    # Most calls change none of these.
    _code: grpc.StatusCode | None = None
    _details = ""
    _trailing: Sequence[wire.Header] = ()
    _is_done = False
    _is_cancelled = False
    _deadline: float | None = None
    _callbacks: tuple[Callable[[Any], None], ...] = ()

    def __init__(self, connection: "Connection", stream_id: int, request: Request) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.window = connection.initial_window
        self._request = request
        if request.timeout_s is not None:
            self._deadline = time.monotonic() + request.timeout_s

    def _status_block(self, start: Sequence[wire.Header]) -> bytes:
        """Returns the header block with the status, after `start`."""
        if self._code is None and not self._details and not self._trailing:
            return OK
        code = self._code or grpc.StatusCode.OK
        status = [("grpc-status", str(code.value[0]))]
        try:
            if self._details:
                # All that gRPC does not want encoded, that is printable ASCII without "%".
                text = quote(self._details, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}", errors="replace")
                status.append(("grpc-message", text))
            return wire.header_block((*start, *status, *self._trailing))
        except (TypeError, ValueError, AttributeError):
            log.exception("a handler set a status that cannot be sent")
            return wire.header_block((*start, *_UNSENDABLE))

    def _call_back(self) -> None:
        callbacks, self._callbacks = self._callbacks, ()
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
                log.exception("a callback at the end of a call failed")

    # --- grpc.aio.ServicerContext ---

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()
    ) -> NoReturn:
        """Ends the call with a status."""
        self._code = grpc.StatusCode.UNKNOWN if code is grpc.StatusCode.OK else code
        self._details = details
        if trailing_metadata:
            self._trailing = tuple(trailing_metadata)
        raise grpc.aio.AbortError

    async def abort_with_status(self, status: Any) -> NoReturn:
        """Ends the call with a status."""
        await self.abort(status.code, status.details, status.trailing_metadata)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Sets what goes out with the status."""
        self._trailing = tuple(trailing_metadata)

    def invocation_metadata(self) -> Any:
        """Returns what the caller sent along, as pairs."""
        return self._request.metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        """Sets the status that goes out at the end."""
        self._code = None if code is grpc.StatusCode.OK else code

    def set_details(self, details: str) -> None:
        """Sets the message of the status."""
        self._details = details

    def set_compression(self, compression: grpc.Compression) -> None:
        """Does nothing: answers are not compressed; Envoy may do it."""

    def disable_next_message_compression(self) -> None:
        """Does nothing: answers are not compressed."""

    def peer(self) -> str:
        """Returns who is at the other end of the connection."""
        return self.connection.peer

    def peer_identities(self) -> Iterable[bytes] | None:
        """Returns None: the connection has no identity."""
        return None

    def peer_identity_key(self) -> str | None:
        """Returns None: the connection has no identity."""
        return None

    def auth_context(self) -> dict[str, Iterable[bytes]]:
        """Returns nothing: the connection has no identity."""
        return {}

    def time_remaining(self) -> float:
        """Returns how many seconds the caller still waits; None where it sets no end."""
        if self._deadline is None:
            return None  # type: ignore[return-value]  # as gRPC has it, whatever its types say
        return max(0.0, self._deadline - time.monotonic())

    def trailing_metadata(self) -> Any:
        """Returns what goes out with the status."""
        return self._trailing

    def code(self) -> Any:
        """Returns the status so far."""
        return self._code

    def details(self) -> str:
        """Returns the message of the status so far."""
        return self._details

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Calls back when the call is over, at once where it is."""
        if self._is_done:
            callback(self)
        else:
            self._callbacks = (*self._callbacks, callback)

    def cancelled(self) -> bool:
        """Says whether the caller left or the time was up."""
        return self._is_cancelled

    def done(self) -> bool:
        """Says whether the call is over."""
        return self._is_done


async def raise_cancelled() -> NoReturn:
    """Ends a handler whose call is over, where it would go on."""
    # A cancellation that is on its way comes here; so it does not come once more later.
    await asyncio.sleep(0)
    raise asyncio.CancelledError
