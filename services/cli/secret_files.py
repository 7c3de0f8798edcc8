"""Files that only their owner may read: keys, passwords, and configurations that hold them."""

import os
import secrets
from pathlib import Path


def kept_secret(path: Path, prefix: str = "") -> str:
    """Returns the secret in the file, which is made on the first call.

    A new one has 256 bits, as letters, digits, `-` and `_`, which mean nothing in a URL.

    Args:
        prefix: What a new secret begins with.
    """
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        secret = prefix + secrets.token_urlsafe(32)
        write_private(path, secret + "\n")
        return secret


def write_private(path: Path, text: str) -> None:
    """Writes the file with mode 0600. It is there whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)
