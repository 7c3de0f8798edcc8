"""Takes down an answer on its way to its caller, up to a size."""

from services.inference.accounting import Account
from services.inference.engines.dialect import Tokens
from services.inference.response_cache.flights import Flight
from services.inference.response_cache.store import PIECE_BYTES, Answer


class Recording:
    """One answer, as far as it has gone out.

    Args:
        max_bytes: The most that it may take; past that nothing is kept.
        flight: Who waits for it; they are let go where it grows too large.
    """

    def __init__(self, max_bytes: int, flight: Flight) -> None:
        self._left = max_bytes
        self._flight = flight
        self._pieces: list[bytes] = []
        self._content_type = ""
        self._account: Account | None = None

    def start(self, account: Account) -> None:
        """Takes the account, which tells in the end what the answer took."""
        self._account = account

    def add(self, piece: bytes, content_type: str = "") -> None:
        """Takes a part of the answer."""
        if self._left < 0:
            return
        self._content_type = self._content_type or content_type
        self._left -= len(piece) + PIECE_BYTES
        if self._left < 0:
            self._pieces.clear()
            self._flight.give_up()
        else:
            self._pieces.append(piece)

    def end(self, *, has_usage: bool = True) -> Answer | None:
        """Returns the answer, which has ended well; None where it is too large to be kept."""
        if self._left < 0 or not self._pieces:
            return None
        tokens = Tokens() if self._account is None else self._account.tokens
        return Answer(tuple(self._pieces), tokens, self._content_type, has_usage)
