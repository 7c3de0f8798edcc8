"""What an answer's headers say besides the answer."""

from services.kit import headers
from services.kit.caller import Caller


def answer_headers(caller: Caller, redactions: int, cache: str = "") -> tuple[tuple[str, str], ...]:
    """Returns the headers; most answers have none.

    Args:
        caller: Who asked, with routing's decision where they want to see it.
        redactions: How many places of the prompt were replaced.
        cache: `hit` or `miss` where an earlier answer was looked for; `hit 0.971` where it answers
            a question that is only so similar.
    """
    said: tuple[tuple[str, str], ...] = ()
    if caller.decision:
        said = ((headers.DECISION, caller.decision),)
    if redactions:
        said += ((headers.REDACTIONS, str(redactions)),)
    if cache:
        found, _, similarity = cache.partition(" ")
        said += ((headers.CACHE, found),)
        if similarity:
            said += ((headers.CACHE_SIMILARITY, similarity),)
    return said
