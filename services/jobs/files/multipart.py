"""Takes an uploaded form apart as it comes, so that no file is in memory as a whole."""

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from infermesh.errors.v1 import errors_pb2
from services.jobs.errors import invalid
from services.kit.errors import MeshError

PIECE_BYTES = 1024 * 1024
"""How much of a file is kept together."""

_MAX_FIELDS = 16
_MAX_FIELD_BYTES = 4096
_MAX_FILENAME_CHARS = 255
_SLACK_BYTES = 65536


class Form:
    """A form that is being read.

    Args:
        content_type: The header of the same name, which says the boundary.
        max_bytes: The largest file.

    Attributes:
        fields: The form's fields but the file.
        filename: The file's name; empty while there is none.
        size: How many bytes of the file have come.
        is_over: Whether the form has ended.

    Raises:
        MeshError: `INVALID_ARGUMENT`, the body is no form.
    """

    def __init__(self, content_type: str, max_bytes: int) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise invalid("file", "the body must be `multipart/form-data`, with a boundary")
        self.fields: dict[str, str] = {}
        self.filename = ""
        self.size = 0
        self.is_over = False
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._read = 0
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._field = ""
        self._value = b""
        self._in_file = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_name,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    def feed(self, data: bytes) -> list[bytes]:
        """Takes in a part of the body; returns the pieces of the file that are full.

        Raises:
            MeshError: `INVALID_ARGUMENT`, or `REQUEST_TOO_LARGE`.
        """
        self._read += len(data)
        if self._read > self._max_bytes + _SLACK_BYTES:
            raise self._too_large()
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise invalid("file", f"the body is no form: {error}") from None
        pieces = []
        while len(self._buffer) >= PIECE_BYTES:
            pieces.append(bytes(self._buffer[:PIECE_BYTES]))
            del self._buffer[:PIECE_BYTES]
        return pieces

    def rest(self) -> bytes:
        """Returns the last piece of the file, which may be empty.

        Raises:
            MeshError: `INVALID_ARGUMENT`, the form is not whole or has no file.
        """
        if not self.is_over:
            raise invalid("file", "the body ends in the middle of the form")
        if not self.size:
            raise invalid("file", "is missing or empty")
        return bytes(self._buffer)

    def _begin(self) -> None:
        self._disposition = self._value = b""
        self._header_name = self._header_value = b""

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = options.get(b"name", b"").decode(errors="replace")
        self._in_file = self._field == "file"
        if self._in_file:
            if self.filename:
                raise invalid("file", "must be in the form once")
            name = options.get(b"filename", b"").decode(errors="replace")
            self.filename = name.replace("\0", "")[:_MAX_FILENAME_CHARS] or "file"
        elif len(self.fields) >= _MAX_FIELDS:
            raise invalid(None, f"The form may have {_MAX_FIELDS} fields at most.")

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self.size += end - start
            if self.size > self._max_bytes:
                raise self._too_large()
            self._buffer += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_FIELD_BYTES:
            raise invalid(self._field[:64], f"may have {_MAX_FIELD_BYTES} bytes at most")

    def _end(self) -> None:
        if not self._in_file:
            self.fields[self._field] = self._value.decode(errors="replace")
        self._in_file = False

    def _finish(self) -> None:
        self.is_over = True

    def _too_large(self) -> MeshError:
        return MeshError(
            errors_pb2.ERROR_REASON_REQUEST_TOO_LARGE,
            f"A file may have {self._max_bytes} bytes at most.",
            param="file",
        )
