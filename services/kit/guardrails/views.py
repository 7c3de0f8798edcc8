"""Texts as people read them: what looks the same is the same, and what is not seen is not there.

Both views undo `\\uXXXX`, which JSON inside of JSON is written with, leave out Unicode's default
ignorable code points (DerivedCoreProperties.txt), and take characters for their plain form (NFKC,
https://www.unicode.org/reports/tr15/). Letters of other alphabets that only look alike stay as they
are.
"""

import re
import unicodedata
from bisect import bisect_right

_IGNORABLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_UNSEEN = re.compile(f"[{_IGNORABLE}]+")
_ODD = re.compile(rf"\\u([0-9a-fA-F]{{4}})|[{_IGNORABLE}]+")
_MAX_FORMS = 20_000


def plain(text: str) -> str:
    """Returns the text as it is read; the same object where that is no other."""
    if "\\u" in text:
        text = _ESCAPE.sub(_unescaped, text)
    if text.isascii():
        return text
    return unicodedata.normalize("NFKC", _UNSEEN.sub("", text))


def _unescaped(match: re.Match[str]) -> str:
    code = int(match[1], 16)
    return match[0] if 0xD800 <= code < 0xE000 else chr(code)


class _Forms(dict[int, str]):
    """The plain form of a character, where that is one character; bounded.

    Characters that become several, such as ligatures, stay, so that places stay where they are.
    """

    def __missing__(self, code: int) -> str:
        if len(self) >= _MAX_FORMS:
            self.clear()
        character = chr(code)
        value = unicodedata.decimal(character, -1)
        form = unicodedata.normalize("NFKC", character) if value < 0 else str(value)
        self[code] = form = form if len(form) == 1 else character
        return form


class View:
    """A text as it is read, with the places of the original. Digits of all scripts are 0 to 9.

    Attributes:
        text: The view.
    """

    __slots__ = ("_origins", "_starts", "_widths", "text")

    def __init__(self, text: str, starts: list[int], origins: list[int], widths: list[int]) -> None:
        self.text = text
        self._starts = starts
        self._origins = origins
        self._widths = widths

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """Returns the place in the original of what stands from `start` to before `end`."""
        if not self._starts:
            return start, end
        first, width = self._place(start)
        last, width = self._place(end - 1)
        return first, last + width

    def _place(self, at: int) -> tuple[int, int]:
        piece = bisect_right(self._starts, at) - 1
        width = self._widths[piece]
        return self._origins[piece] + (at - self._starts[piece]) * width, width


class Reader:
    """Makes views; keeps the forms of characters that it has met."""

    def __init__(self) -> None:
        self._forms = _Forms()

    def view(self, text: str) -> View:
        """Returns a text's view."""
        if text.isascii():
            if "\\u" not in text:
                return View(text, [], [], [])
        elif "\\u" not in text and _UNSEEN.search(text) is None:
            return View(text.translate(self._forms), [], [], [])
        pieces: list[str] = []
        starts: list[int] = []
        origins: list[int] = []
        widths: list[int] = []
        length = done = 0

        def add(piece: str, origin: int, width: int) -> None:
            nonlocal length
            if piece:
                pieces.append(piece.translate(self._forms))
                starts.append(length)
                origins.append(origin)
                widths.append(width)
                length += len(piece)

        for match in _ODD.finditer(text):
            add(text[done : match.start()], done, 1)
            if match[1] is not None:
                character = _unescaped(match)
                if len(character) > 1:  # half of a pair
                    add(character, match.start(), 1)
                elif _UNSEEN.match(character) is None:
                    add(character, match.start(), len(match[0]))
            done = match.end()
        add(text[done:], done, 1)
        return View("".join(pieces), starts, origins, widths)
