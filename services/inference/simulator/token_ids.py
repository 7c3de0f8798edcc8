"""Tokens by ids from which their texts can be read again, so that there need be no vocabulary."""

from services.inference.simulator.answers import TOKEN_CHARACTERS
from services.inference.simulator.prompt import RequestError

# An id holds a letter in seven bits, so that four of them fit into a positive 32-bit number.
_BITS = 7
_MASK = (1 << _BITS) - 1


def pieces_of(text: str) -> list[str]:
    """Returns a text's tokens as texts, the last one perhaps shorter."""
    return [text[at : at + TOKEN_CHARACTERS] for at in range(0, len(text), TOKEN_CHARACTERS)]


def id_of(piece: str) -> int:
    """Returns a token's id; letters beyond ASCII all become `?`."""
    number = 0
    for letter in reversed(piece):
        number = number << _BITS | (ord(letter) if 0 < ord(letter) <= _MASK else ord("?"))
    return number


def piece_of(number: object) -> str:
    """Returns a token's text.

    Raises:
        RequestError: It is no token's id.
    """
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**31:
        raise RequestError("a token is a number", param="tokens")
    letters = []
    while number:
        letters.append(chr(number & _MASK))
        number >>= _BITS
    return "".join(letters)
