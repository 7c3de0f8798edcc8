"""Replaces secrets and personal data by words for their kind. What was found is told to nobody."""

from collections.abc import Sequence

from services.kit.guardrails.blocked import blocked
from services.kit.guardrails.prompt import Prompt
from services.kit.guardrails.recognizers import RECOGNIZERS
from services.kit.guardrails.recognizers.recognizer import Proofs, Recognizer
from services.kit.guardrails.views import Reader


class Redact:
    """Replaces what recognizers find.

    Args:
        kinds: Numbers of `infermesh.auth.v1.Redaction`.

    Raises:
        KeyError: A number that this version does not know.
    """

    def __init__(self, kinds: Sequence[int]) -> None:
        unknown = set(kinds) - RECOGNIZERS.keys()
        if unknown:
            raise KeyError(unknown)
        self._recognizers = [each for kind, each in RECOGNIZERS.items() if kind in kinds]
        self._reader = Reader()

    def check(self, prompt: Prompt) -> None:
        """Replaces texts. Raises `CONTENT_BLOCKED` where what would have to go is a name."""
        proofs = Proofs()
        for name in prompt.names:
            if self._replaced(name, proofs)[1]:
                raise blocked(None)
        texts = prompt.texts
        for index, text in enumerate(texts):
            new, count = self._replaced(text, proofs)
            if count:
                texts[index] = new
                prompt.redactions += count

    def _replaced(self, text: str, proofs: Proofs) -> tuple[str, int]:
        count = 0
        view = None
        for recognizer in self._recognizers:
            if view is None:
                view = self._reader.view(text)
            found = list(recognizer.find(view.text, proofs))
            if found:
                text = _put([view.origin(*span) for span in found], text, recognizer)
                view = None
                count += len(found)
        return text, count


def _put(spans: Sequence[tuple[int, int]], text: str, recognizer: Recognizer) -> str:
    pieces: list[str] = []
    done = 0
    for start, end in spans:
        pieces += (text[done:start], recognizer.word)
        done = end
    pieces.append(text[done:])
    return "".join(pieces)
