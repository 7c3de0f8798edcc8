"""E-mail addresses."""

from collections.abc import Iterator

from services.kit.guardrails.recognizers.recognizer import Proofs, compiled

# RFC 5321's form without quotes and address literals, with RFC 6531's letters. Neither side is
# bounded in length, so that padding hides nothing.
_LOCAL = r"[\pL\pN!#$%&'*+/=?^_{|}~-]+(?:\.+[\pL\pN!#$%&'*+/=?^_{|}~-]+)*"
_ADDRESS = compiled(_LOCAL + r"@[\pL\pN](?:[\pL\pN-]*)(?:\.[\pL\pN-]+)*\.\pL[\pL\pN-]+")


class EmailAddresses:
    """Finds e-mail addresses."""

    word = "<EMAIL_ADDRESS>"

    def find(self, text: str, proofs: Proofs) -> Iterator[tuple[int, int]]:
        """See `Recognizer`."""
        if "@" in text:
            for match in _ADDRESS.finditer(text):
                yield match.span()
