"""Keeps what a receiver refuses as invalid, for people to look at."""

import os
from pathlib import Path

_MAX_BYTES = 4 * 1024 * 1024


def set_aside(directory: Path, text: str) -> None:
    """Appends a text to the file `rejected`, of which there are two of 4 MiB at most.

    Raises:
        OSError: It cannot be written.
    """
    path = directory / "rejected"
    if path.exists() and path.stat().st_size >= _MAX_BYTES:
        path.replace(path.with_suffix(".old"))
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, text.encode() + b"\n")
    finally:
        os.close(file)
