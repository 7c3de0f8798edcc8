"""Reads what callers ask of batches, and the lines of their files."""

import uuid
from typing import Any, NamedTuple

import orjson

from services.jobs import fields as check
from services.jobs.errors import refuse, unsupported
from services.kit.errors import MeshError

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")

MAX_LINE_BYTES = 16 * 1024 * 1024
"""The longest line: what a caller could send as one request."""

_WINDOW = "24h"
WINDOW_S = 86_400

_BOM = b"\xef\xbb\xbf"
_MAX_ID_CHARS = 64
_MAX_CUSTOM_ID_CHARS = 512
_NAMESPACE = uuid.UUID("6c6d6f92-5f3c-4a4e-9c1c-6f0a54c2a1b7")


class BatchRequest(NamedTuple):
    """A request for a batch that was checked."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str]
    output_ttl_s: int | None


def parse(body: bytes) -> BatchRequest:
    """Reads a request.

    Raises:
        MeshError: `INVALID_JSON`; `INVALID_ARGUMENT` or `UNSUPPORTED` with the field at fault.
    """
    said = check.body(body)
    file_id = check.text(said, "input_file_id", _MAX_ID_CHARS)
    if not file_id:
        refuse("input_file_id", "must be the id of a file")
    endpoint = check.text(said, "endpoint", _MAX_ID_CHARS)
    if endpoint not in ENDPOINTS:
        raise unsupported("endpoint", f"must be one of {', '.join(ENDPOINTS)}")
    window = check.text(said, "completion_window", _MAX_ID_CHARS)
    if window != _WINDOW:
        raise unsupported("completion_window", f"must be {_WINDOW}")
    expiry = check.mapping(said, "output_expires_after")
    if expiry.get("anchor", "created_at") != "created_at":
        refuse("output_expires_after.anchor", "must be created_at")
    return BatchRequest(
        file_id,
        endpoint,
        window,
        check.metadata(said),
        check.integer(expiry, "seconds", 3600),
    )


class Line(NamedTuple):
    """A line of a batch's input.

    Args:
        number: Its place in the file, from 1.
        custom_id: The caller's name for it; None where the line does not say.
        body: The request; None for a line that is wrong.
        error: Why it is wrong; None where it is not.
    """

    number: int
    custom_id: str | None
    body: bytes | None
    error: tuple[str, str] | None = None


class LineReader:
    """Cuts a file into lines and checks each; a line that is wrong is that line's matter alone.

    A byte order mark is no part of the first line: editors put it there unasked.

    Args:
        endpoint: Where all requests go.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._rest = b""
        self._number = 0
        self._known: set[str] = set()
        self._skips = False
        self._is_first = True

    def feed(self, data: bytes) -> list[Line]:
        """Returns the lines that are complete now."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        lines = [line for text in whole if (line := self._read(text)) is not None]
        if len(self._rest) > MAX_LINE_BYTES and not self._skips:
            # The rest of it is dropped as it comes.
            self._number += 1
            lines.append(self._wrong(None, "line_too_long", "The line is longer than 16 MiB."))
            self._skips = True
        if self._skips:
            self._rest = b""
        return lines

    def finish(self) -> list[Line]:
        """Returns the last line, which needs no end."""
        return self.feed(b"\n")

    def _read(self, text: bytes) -> Line | None:
        if self._is_first:
            self._is_first = False
            text = text.removeprefix(_BOM)
        if self._skips:
            self._skips = False
            return None
        if not text.strip():
            return None
        self._number += 1
        try:
            said = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            return self._wrong(None, "invalid_json_line", f"The line is not valid JSON: {error}")
        if not isinstance(said, dict):
            return self._wrong(None, "invalid_json_line", "The line is not a JSON object.")
        custom_id = said.get("custom_id")
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_CUSTOM_ID_CHARS:
            return self._wrong(
                None,
                "invalid_custom_id",
                f"`custom_id` must be a text of 1 to {_MAX_CUSTOM_ID_CHARS} characters.",
            )
        if "\0" in custom_id:
            return self._wrong(None, "invalid_custom_id", "`custom_id` must not hold NUL.")
        if custom_id in self._known:
            return self._wrong(
                custom_id, "duplicate_custom_id", "Another line before has the same `custom_id`."
            )
        self._known.add(custom_id)
        if said.get("method", "POST") != "POST":
            return self._wrong(custom_id, "invalid_method", "`method` must be POST.")
        if said.get("url") != self._endpoint:
            return self._wrong(
                custom_id, "invalid_url", f"`url` must be the batch's endpoint, {self._endpoint}."
            )
        body = said.get("body")
        if not isinstance(body, dict):
            return self._wrong(custom_id, "invalid_request", "`body` must be an object.")
        model = body.get("model")
        if not isinstance(model, str) or not (model and model.isascii() and model.isprintable()):
            return self._wrong(custom_id, "invalid_request", "`body.model` must name a model.")
        if body.get("stream"):
            return self._wrong(custom_id, "invalid_request", "`body.stream` must not be true.")
        try:
            asked = check.written({**body, "priority": "low"})
        except MeshError as error:
            return self._wrong(custom_id, "invalid_request", error.message)
        return Line(self._number, custom_id, asked)

    def _wrong(self, custom_id: str | None, code: str, message: str) -> Line:
        return Line(self._number, custom_id, None, (code, message))


def request_id(batch_id: str, number: int, tries: int) -> str:
    """Returns the id under which a line is in the ledger, the same for ever.

    Args:
        batch_id: The batch.
        number: The line.
        tries: Which try it is, from 1: one that was refused before it ran is in nobody's account.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{batch_id}/{number}/{tries}"))


def answered(line_id: str, custom_id: str | None, status: int, body: bytes) -> bytes:
    """Returns the line of an output or error file for a request that was answered.

    Args:
        line_id: The request's id.
        custom_id: The caller's name for it.
        status: The HTTP status.
        body: The answer's JSON.
    """
    return orjson.dumps(
        {
            "id": f"batch_req_{line_id}",
            "custom_id": custom_id,
            "response": {
                "status_code": status,
                "request_id": line_id,
                "body": orjson.Fragment(body),
            },
            "error": None,
        }
    )


def unanswered(line_id: str, custom_id: str | None, code: str, message: str) -> bytes:
    """Returns the line of an error file for a request of which no answer is known."""
    return orjson.dumps(
        {
            "id": f"batch_req_{line_id}",
            "custom_id": custom_id,
            "response": None,
            "error": {"code": code, "message": message},
        }
    )


def file_errors(code: str, message: str) -> dict[str, Any]:
    """Returns OpenAI's list of errors of a batch that failed as a whole."""
    return {
        "object": "list",
        "data": [{"code": code, "line": None, "message": message, "param": None}],
    }
