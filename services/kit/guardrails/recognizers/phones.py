"""Telephone numbers."""

from collections.abc import Iterator

import phonenumbers

from services.kit.guardrails.recognizers.recognizer import Proofs, compiled

# `+` or `00` and a country's code; a North American number; any number that a word announces.
_NUMBER = compiled(
    r"(?:\+|\b00)[ ]?[(]?[0-9](?:[ ().\-/]{0,3}[0-9]){6,16}"
    r"|(?:\([2-9][0-9]{2}\)[ ]?|\b[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}\b"
    r"|(?i:\b(?:tel|telefon|telephone|phone|mobile|mobil|cell|handy|fax|fon|call|dial)"
    r"(?: ?(?:no|nr|number|nummer)\b)?)[ ]?[.:=]{0,2}[ ]?"
    r"([(]?[0-9](?:[ ().\-/]{0,3}[0-9]){5,14})"
)


class PhoneNumbers:
    """Finds international and North American numbers, and those that a word announces.

    National numbers of other countries without such a word look like any digits, and are not found.
    """

    word = "<PHONE_NUMBER>"

    def find(self, text: str, proofs: Proofs) -> Iterator[tuple[int, int]]:
        """See `Recognizer`."""
        for match in _NUMBER.finditer(text):
            start, end = match.span()
            if match.span(1) != (-1, -1):
                start, end = match.span(1)
            elif text[start] in "+0":
                end = _end_of_international(text, start, end, proofs)
            elif not _is_american(text[start:end], proofs):
                continue
            if end > start:
                yield start, end


def _end_of_international(text: str, start: int, end: int, proofs: Proofs) -> int:
    """Returns the end of the number, after which other digits may follow; `start` for none."""
    possible = start
    while end > start:
        if not proofs.take():
            return end
        number = text[start:end]
        parsed = _parsed("+" + number[2:] if number.startswith("00") else number, None)
        if parsed is not None and phonenumbers.is_valid_number(parsed):
            return end
        if possible == start and parsed is not None and phonenumbers.is_possible_number(parsed):
            possible = end
        end = max(start, *(text.rfind(separator, start, end) for separator in " -./("))
        while end > start and not text[end - 1].isdigit():
            end -= 1
    # A number that no plan knows has the form of one, and somebody wrote it for one.
    return possible


def _is_american(number: str, proofs: Proofs) -> bool:
    if not proofs.take():
        return True
    parsed = _parsed(number, "US")
    return parsed is not None and phonenumbers.is_valid_number(parsed)


def _parsed(number: str, region: str | None) -> "phonenumbers.PhoneNumber | None":
    try:
        return phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return None
