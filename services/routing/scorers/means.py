"""What scorers do about what is not known."""

from collections.abc import Sequence


def filled(values: Sequence[float | None]) -> Sequence[float] | None:
    """Returns the values with the mean of the known in place of the unknown.

    None where no value is known, or all are the same: then nothing tells the nodes apart.
    """
    known = [value for value in values if value is not None]
    if not known or min(known) == max(known):
        return None
    if len(known) == len(values):
        return known
    mean = sum(known) / len(known)
    return [mean if value is None else value for value in values]
