"""IP addresses."""

import ipaddress
from collections.abc import Iterator

from services.kit.guardrails.recognizers.recognizer import Proofs, apart, compiled

# Whole runs, so that a longer number with dots is not taken for an address inside of it.
_V4 = compiled(r"[0-9]+(?:\.[0-9]+){3,}")
_V6 = compiled(r"[0-9A-Fa-f:]*:[0-9A-Fa-f]*:[0-9A-Fa-f:]*(?:[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+)?")


class IpAddresses:
    """Finds IPv4 and IPv6 addresses. Versions of four numbers look the same, and are found too."""

    word = "<IP_ADDRESS>"

    def find(self, text: str, proofs: Proofs) -> Iterator[tuple[int, int]]:
        """See `Recognizer`."""
        found = [match.span() for match in _V4.finditer(text) if _is_v4(match[0])]
        if ":" in text:
            sixes = (_v6(text, match.start(), match.end(), proofs) for match in _V6.finditer(text))
            found = apart([*found, *(span for span in sixes if span is not None)])
        yield from found


def _is_v4(text: str) -> bool:
    numbers = text.split(".")
    return len(numbers) == 4 and all(len(each) <= 3 and int(each) < 256 for each in numbers)


def _v6(text: str, start: int, end: int, proofs: Proofs) -> tuple[int, int] | None:
    """Returns the place of the address in a run of its characters, without a colon after it."""
    if text[end - 1] == ":" and text[end - 2] != ":":
        end -= 1
    if _is_wordy(text[start - 1 : start]) or _is_wordy(text[end : end + 1]):
        return None
    address = text[start:end]
    # `ad::be` is C++ more often than an address.
    if not any(character.isdigit() for character in address):
        return None
    if not proofs.take():
        return start, end
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return None
    return start, end


def _is_wordy(character: str) -> bool:
    return character.isalnum() or character == "_"
