"""Numbers of credit cards."""

import re
from collections.abc import Iterator

from stdnum import luhn

from services.kit.guardrails.recognizers.recognizer import Proofs, compiled

# Runs of digits with at most one space or dash between them.
_RUN = compiled(r"[0-9](?:[ -]?[0-9]){12,}")
_GROUP = re.compile("[0-9]+")
_MIN_DIGITS = 13
_MAX_DIGITS = 19
# The first digits of payment cards (ISO/IEC 7812): 3 travel, 4 and 5 banks, 2 and 6 both.
_FIRST = frozenset("23456")


class CreditCards:
    """Finds 13 to 19 digits that pass Luhn's check, in the groups that cards are written in."""

    word = "<CREDIT_CARD>"

    def find(self, text: str, proofs: Proofs) -> Iterator[tuple[int, int]]:
        """See `Recognizer`."""
        for run in _RUN.finditer(text):
            at = run.start()
            groups = [(at + each.start(), at + each.end()) for each in _GROUP.finditer(run[0])]
            yield from _cards(groups, text, proofs)


def _cards(groups: list[tuple[int, int]], text: str, proofs: Proofs) -> Iterator[tuple[int, int]]:
    """Looks for cards among groups of digits; a card begins and ends with a group."""
    first = 0
    while first < len(groups):
        last = _last_of_card(groups, first, text, proofs)
        if last is None:
            first += 1
        else:
            yield groups[first][0], groups[last][1]
            first = last + 1


def _last_of_card(
    groups: list[tuple[int, int]], first: int, text: str, proofs: Proofs
) -> int | None:
    begins, ends = groups[first]
    size = ends - begins
    # One block, groups of which the first has four, or digits one by one.
    if text[begins] not in _FIRST or not (size in (1, 4) or size >= _MIN_DIGITS):
        return None
    digits = ""
    found = None
    for index in range(first, len(groups)):
        start, end = groups[index]
        if size == 1 and end - start != 1:
            break
        digits += text[start:end]
        if len(digits) > _MAX_DIGITS:
            break
        if len(digits) >= _MIN_DIGITS and (not proofs.take() or luhn.is_valid(digits)):
            found = index
    return found
