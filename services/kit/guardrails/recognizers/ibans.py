"""International bank account numbers."""

import re
from collections.abc import Iterator
from functools import lru_cache

from stdnum import iban, numdb

from services.kit.guardrails.recognizers.recognizer import Proofs, compiled

# ISO 13616: two letters, two check digits, 11 to 30 letters and digits; spaces or dashes between.
_START = compiled(r"[A-Za-z]{2}[0-9]{2}")
_REST = re.compile(r"(?:[ -]?[A-Za-z0-9]){11,30}")
_START_CHARS = 4
_MAX_REST_CHARS = 60
_PLACES = re.compile("[A-Za-z0-9]")
# A part of a country's numbers in SWIFT's registry. Example: `8!n10!n` is 18 digits.
_PART = re.compile(r"([0-9]+)!")
_COUNTRIES = 26 * 26


class Ibans:
    """Finds what has the length and form of its country's numbers and passes the check digits."""

    word = "<IBAN>"

    def find(self, text: str, proofs: Proofs) -> Iterator[tuple[int, int]]:
        """See `Recognizer`."""
        done = 0
        for match in _START.finditer(text):
            start, rest = match.span()
            size = _length(text[start : start + 2].upper())
            if start < done or size is None:
                continue
            # The run may go on with the next words: only as much counts as the country has.
            more = _REST.match(text[rest : rest + _MAX_REST_CHARS])
            places = [each.end() for each in _PLACES.finditer(more[0])] if more else []
            if len(places) < size - _START_CHARS:
                continue
            end = rest + places[size - _START_CHARS - 1]
            # The country's own check digits are not looked at: who errs there wrote one as well.
            if not proofs.take() or iban.is_valid(text[start:end], check_country=False):
                yield start, end
                done = end


@lru_cache(_COUNTRIES)
def _length(country: str) -> int | None:
    """Returns the characters of a country's numbers; None where the registry has none."""
    found = numdb.get("iban").info(country)[0][1].get("bban")
    return _START_CHARS + sum(map(int, _PART.findall(found))) if found else None
