"""An engine's answer that is made OpenAI's on the way."""

from collections.abc import Callable

from services.inference.engines.dialect import Plan, Translator
from services.inference.http_client import MAX_BODY_BYTES, EngineConnectionError, Exchange, Take

_MAX_LINE_BYTES = 8 * 1024 * 1024


def translated(exchange: Exchange, plan: Plan) -> Exchange:
    """Returns an answer with status 200 as one of an engine that speaks OpenAI's form."""
    if plan.translator is not None:
        return TranslatedExchange(exchange, plan.translator())
    if plan.mend is not None:
        return MendedExchange(exchange, plan.mend)
    return exchange


class _Wrapped(Exchange):
    """An exchange that reads another one."""

    def __init__(self, exchange: Exchange, content_type: str) -> None:
        self._exchange = exchange
        self.status = exchange.status
        self.content_type = content_type

    @property
    def is_complete(self) -> bool:
        return self._exchange.is_complete

    def offer(self, take: Take | None) -> None:
        # What is not OpenAI's yet passes nobody by.
        pass

    def hasten(self) -> None:
        self._exchange.hasten()

    def close(self) -> None:
        self._exchange.close()


class MendedExchange(_Wrapped):
    """A whole answer.

    Args:
        exchange: The engine's answer.
        mend: Makes it OpenAI's.
    """

    def __init__(self, exchange: Exchange, mend: Callable[[bytes], bytes]) -> None:
        super().__init__(exchange, exchange.content_type)
        self._mend = mend

    async def read(self, at_least: int = 1) -> bytes:
        """Returns what has arrived, as it is."""
        return await self._exchange.read(at_least)

    async def read_all(self, max_bytes: int = MAX_BODY_BYTES) -> bytes:
        """Returns the whole body, mended.

        Raises:
            EngineConnectionError: The connection broke, or the body is not what it should be.
            EngineTimeoutError: Nothing came for the idle timeout.
        """
        return self._mend(await self._exchange.read_all(max_bytes))


class TranslatedExchange(_Wrapped):
    """A stream.

    Args:
        exchange: The engine's answer.
        translator: Makes events of it.
    """

    def __init__(self, exchange: Exchange, translator: Translator) -> None:
        super().__init__(exchange, "text/event-stream")
        self._translator = translator

    async def read(self, at_least: int = 1) -> bytes:
        """Returns the events of what has arrived since the last call; b"" at the end.

        Raises:
            EngineConnectionError: The connection broke before the end, or carries something else.
            EngineTimeoutError: Nothing came for the idle timeout.
        """
        while piece := await self._exchange.read(at_least):
            if events := self._translator.feed(piece):
                return events
        return b""


class Lines:
    """Cuts a body that comes in pieces into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """Returns the lines that are complete now, without their ends; blank ones too.

        Raises:
            EngineConnectionError: A line has no end.
        """
        whole = self._rest + piece if self._rest else piece
        lines = whole.split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _MAX_LINE_BYTES:
            raise EngineConnectionError("a line of the engine's has no end")
        return lines
