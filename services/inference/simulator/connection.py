"""One HTTP/1.1 connection to a simulated engine."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import httptools

from services.inference.simulator.answers import STREAM_HEAD, Answers
from services.inference.simulator.api import Api, error_reply, parsed
from services.inference.simulator.engine import QueueFullError
from services.inference.simulator.prompt import (
    Ask,
    RequestError,
    ask_of,
    chat_text,
    completion_text,
    tokens_of,
)
from services.inference.simulator.sequence import Sequence

MAX_BODY_BYTES = 64 * 1024 * 1024
_TOO_LONG = error_reply(RequestError("the body is too long", status=413))
_NOT_FOUND = error_reply(RequestError("Not Found", status=404, kind="NotFoundError"))
_NOT_HTTP = error_reply(RequestError("not HTTP"))
_FULL = error_reply(RequestError("the queue is full", status=503, kind="ServiceUnavailableError"))
_BROKEN = error_reply(RequestError("a simulated fault", status=500, kind="InternalServerError"))


class Connection(asyncio.Protocol):
    """One connection; requests on it are answered one after the other.

    It is also where the tokens of its request go.

    Args:
        api: What is served.
        on_end: Called once it is closed.
    """

    def __init__(self, api: Api, on_end: Callable[["Connection"], object]) -> None:
        self._api = api
        self._on_end = on_end
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._url = b""
        self._body: list[bytes] = []
        self._size = 0
        self._later: deque[tuple[bytes, bytes, bytes, bool]] = deque()
        self._sequence: Sequence | None = None
        self._answers: Answers | None = None
        self._ask: Ask | None = None
        self._embed: Callable[[], bytes] | None = None
        self._stays = True
        self._is_going = False

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops what is being answered: nobody hears it any more."""
        self._transport = None
        self._later.clear()
        sequence, self._sequence = self._sequence, None
        if sequence is not None:
            self._api.engine.cancel(sequence)
        self._on_end(self)

    def data_received(self, data: bytes) -> None:
        """Parses what came."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            # A fault of the simulator's own, which the event loop reports.
            self.abort()
            raise
        except httptools.HttpParserError:
            self._stays = False
            self._end(_NOT_HTTP)

    # What the parser calls.

    def on_url(self, url: bytes) -> None:
        """Keeps the path."""
        self._url = url

    def on_body(self, body: bytes) -> None:
        """Keeps a piece of the body."""
        self._size += len(body)
        if self._size <= MAX_BODY_BYTES:
            self._body.append(body)
        else:
            self._body.clear()

    def on_message_complete(self) -> None:
        """Answers, or puts the request behind the one that is being answered."""
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        method, stays = self._parser.get_method(), self._parser.should_keep_alive()
        is_too_long = self._size > MAX_BODY_BYTES
        self._body, self._size = [], 0
        if is_too_long:
            self._stays = False
            self._end(_TOO_LONG)
        else:
            self._later.append((method, self._url, body, stays))
            self._go_on()
            if self._later and self._transport is not None:
                self._transport.pause_reading()

    # Requests.

    def _go_on(self) -> None:
        """Answers what came, in order; returns when an answer takes time or nothing is left."""
        if self._is_going:
            return
        self._is_going = True
        try:
            while self._later and self._sequence is None and self._is_open:
                self._handle(*self._later.popleft())
        finally:
            self._is_going = False

    def _handle(self, method: bytes, url: bytes, body: bytes, stays: bool) -> None:
        self._stays = stays
        try:
            if method == b"POST" and url in self._api.work:
                if self._is_faulty():
                    return
                if url == b"/v1/embeddings":
                    self._vectors(parsed(body))
                elif url.endswith(b"/rerank"):
                    self._ranking(parsed(body))
                else:
                    self._generate(parsed(body), is_chat=url == b"/v1/chat/completions")
            elif page := self._api.pages.get((method, url.partition(b"?")[0])):
                self._end(page(body))
            else:
                self._end(_NOT_FOUND)
        except RequestError as error:
            self._end(error_reply(error))
        except QueueFullError:
            self._sequence = self._embed = None
            self._end(_FULL)

    def _is_faulty(self) -> bool:
        faults = self._api.engine.faults
        if faults.drop_rate and self._api.drops.next(faults.drop_rate):
            self.abort()
            return True
        if faults.error_rate and self._api.errors.next(faults.error_rate):
            self._end(_BROKEN)
            return True
        return False

    def _generate(self, request: dict[str, Any], *, is_chat: bool) -> None:
        engine = self._api.engine
        options = engine.options
        answers = self._api.answers(request.get("model"), is_chat=is_chat)
        text = chat_text(request) if is_chat else completion_text(request)
        ask = ask_of(request, text, answer_tokens=options.answer_tokens, longest=options.longest)
        self._answers, self._ask = answers, ask
        self._sequence = Sequence(
            self,
            model=answers.model,
            text=text,
            prompt_tokens=ask.prompt_tokens,
            answer_tokens=ask.answer_tokens,
            is_stream=ask.is_stream,
            priority=ask.priority,
        )
        engine.submit(self._sequence)

    def _vectors(self, request: dict[str, Any]) -> None:
        model = str(request.get("model") or self._api.engine.options.model)
        self._api.check_model(model)
        texts = self._api.inputs(request)
        tokens = sum(map(tokens_of, texts))
        self._submit(model, tokens, lambda: self._api.vectors(request, texts, tokens))

    def _ranking(self, request: dict[str, Any]) -> None:
        model = str(request.get("model") or self._api.engine.options.model)
        self._api.check_model(model)
        query, documents, top_n = self._api.ranked(request)
        # The model reads the query before every document.
        tokens = sum(tokens_of(query) + tokens_of(document) for document in documents)
        self._submit(
            model, tokens, lambda: self._api.ranking(request, query, documents, top_n, tokens)
        )

    def _submit(self, model: str, tokens: int, answer: Callable[[], bytes]) -> None:
        """Puts a prompt that gets no tokens through the engine."""
        self._embed = answer
        self._sequence = Sequence(
            self, model=model, text="", prompt_tokens=tokens, answer_tokens=0, is_stream=False
        )
        self._api.engine.submit(self._sequence)

    # Answers.

    def emit(self, start: int, end: int) -> None:
        """Sends tokens of a stream."""
        if self._answers is not None and self._transport is not None:
            piece = self._answers.piece(start, end)
            if not start:
                head = STREAM_HEAD if self._stays else _closing(STREAM_HEAD)
                piece = head + self._answers.begin + piece
            self._transport.write(piece)

    def finish(self, prompt: int, tokens: int, cached: int) -> None:
        """Sends an answer, or the end of a stream."""
        self._sequence = None
        if self._embed is not None:
            embed, self._embed = self._embed, None
            self._end(embed())
        elif self._answers is not None and self._ask is not None:
            if self._ask.is_stream:
                with_usage = self._ask.wants_usage
                self._end(self._answers.tail(prompt, tokens, cached, with_usage=with_usage))
            else:
                self._end(self._answers.whole(prompt, tokens, cached))
        if not self._later and not self._is_going and self._transport is not None:
            self._transport.resume_reading()
        self._go_on()

    def abort(self) -> None:
        """Closes the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def _is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def _end(self, data: bytes) -> None:
        """Sends the last of an answer."""
        if self._transport is not None:
            if not self._stays and data.startswith(b"HTTP/"):
                data = _closing(data)
            self._transport.write(data)
            if not self._stays:
                self._transport.close()


def _closing(answer: bytes) -> bytes:
    """Returns an answer that says that its connection ends with it (RFC 9112, section 9.6)."""
    return answer.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
