"""Lengths of time as people type them."""

import re

import typer

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str) -> int:
    """Returns the seconds in `0s`, `30m`, `12h` or `90d`.

    Raises:
        typer.BadParameter: It is no such text.
    """
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None:
        raise typer.BadParameter(f"{text} is not a time such as 30m, 12h or 90d.")
    return int(found[1]) * _UNITS[found[2]]
