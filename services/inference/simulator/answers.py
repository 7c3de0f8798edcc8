"""The bytes of answers, made once: every answer begins with the same words.

A word is a token of exactly four characters, so that an answer that comes back as part of the next
prompt has as many tokens there as it had here.
"""

import time
from functools import lru_cache
from http import HTTPStatus

import orjson

TOKEN_CHARACTERS = 4
CREATED = 1_700_000_000
_FIRST, _MIDDLE, _LAST = "bdfgklmnprstvz", "aeiou", "bdfgklmnprst"

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)


def word(number: int) -> str:
    """Returns the token at a place in an answer; it repeats after 840."""
    number, last = divmod(number, len(_LAST))
    number, middle = divmod(number, len(_MIDDLE))
    return f" {_FIRST[number % len(_FIRST)]}{_MIDDLE[middle]}{_LAST[last]}"


_WHOLE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: "


@lru_cache(maxsize=1024)
def answer_text(tokens: int) -> str:
    """Returns what an answer of so many tokens says."""
    return "".join(word(i) for i in range(tokens))


def framed(data: bytes) -> bytes:
    """Returns a server-sent event in the framing of a chunked body."""
    return b"%x\r\ndata: %s\n\n\r\n" % (len(data) + 8, data)


STREAM_END = framed(b"[DONE]") + b"0\r\n\r\n"


def reply(body: bytes, *, status: int = 200, content_type: str = "application/json") -> bytes:
    """Returns a whole HTTP response."""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def usage_object(prompt: int, answer: int, cached: int) -> dict[str, object]:
    """Returns OpenAI's usage."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class Answers:
    """The answers of one model in one dialect.

    Args:
        model: The name that they carry.
        longest: The tokens of an answer that nobody limits; such an answer ends with `stop`.
        is_chat: Whether they are chats', else completions'.
        is_stamped: Whether streams carry times for words, see `EngineOptions`.

    Attributes:
        model: The name that they carry.
        begin: What a stream says before its first token.
    """

    def __init__(
        self, model: str, longest: int, *, is_chat: bool, is_stamped: bool = False
    ) -> None:
        self.model = model
        self._is_chat = is_chat
        self._is_stamped = is_stamped
        self._longest = longest
        self._base = {
            "id": "chatcmpl-simulated" if is_chat else "cmpl-simulated",
            "object": "chat.completion.chunk" if is_chat else "text_completion",
            "created": CREATED,
            "model": model,
        }
        self._words = [word(i).encode() for i in range(longest)]
        self.begin = framed(self._event({"role": "assistant", "content": ""})) if is_chat else b""
        mark = "@@"
        said = {"content": mark} if is_chat else {"text": mark}
        self._before, self._after = self._event(said).split(mark.encode())
        self._pieces = [framed(self._before + each + self._after) for each in self._words]
        self._whole: dict[int, tuple[bytes, bytes]] = {longest: self._split(longest)}

    def piece(self, start: int, end: int) -> bytes:
        """Returns the event that carries the tokens from `start` up to `end`."""
        if self._is_stamped:
            stamp = b" %d" % (time.monotonic_ns() // 1000)
            return framed(self._before + stamp + self._after)
        if end == start + 1:
            return self._pieces[start]
        return framed(self._before + b"".join(self._words[start:end]) + self._after)

    def tail(self, prompt: int, tokens: int, cached: int, *, with_usage: bool) -> bytes:
        """Returns the end of a stream."""
        said: dict[str, str] = {} if self._is_chat else {"text": ""}
        end = framed(self._event(said, self._reason(tokens)))
        if with_usage:
            usage = usage_object(prompt, tokens, cached)
            end += framed(orjson.dumps({**self._base, "choices": [], "usage": usage}))
        return end + STREAM_END

    def whole(self, prompt: int, tokens: int, cached: int) -> bytes:
        """Returns an answer in one piece as an HTTP response."""
        before, after = self._whole.get(tokens) or self._split(tokens)
        body = before + orjson.dumps(usage_object(prompt, tokens, cached)) + after
        return b"%s%d\r\n\r\n%s" % (_WHOLE_HEAD, len(body), body)

    def _split(self, tokens: int) -> tuple[bytes, bytes]:
        text = answer_text(tokens)
        choice: dict[str, object] = {"index": 0, "finish_reason": self._reason(tokens)}
        if self._is_chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        kind = "chat.completion" if self._is_chat else "text_completion"
        body = {**self._base, "object": kind, "choices": [choice], "usage": 0}
        return orjson.dumps(body)[:-2], b"}"

    def _reason(self, tokens: int) -> str:
        return "stop" if tokens == self._longest else "length"

    def _event(self, said: dict[str, str], reason: str | None = None) -> bytes:
        choice: dict[str, object] = {"index": 0, "finish_reason": reason}
        choice |= {"delta": said} if self._is_chat else said
        return orjson.dumps({**self._base, "choices": [choice]})
