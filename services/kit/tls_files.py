"""Writes a part's TLS files, all at once.

The files are links into a folder of one generation: `cert.pem` → `..data/cert.pem`, `..data` →
`..4f2a…`. Setting `..data` anew, which is one rename, changes all of them together. Kubernetes
mounts secrets that way, and Envoy's `watched_directory` waits for just such a rename.
"""

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

_DATA = "..data"


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Makes these the folder's files, mode 0600, its folders 0700.

    Args:
        folder: Made where it is not there; must be on one file system.
        files: All of them, by name.

    Raises:
        OSError: They cannot be written; the files from before are then still there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = folder / f"..{secrets.token_hex(8)}"
    new.mkdir(mode=0o700)
    try:
        for name, content in files.items():
            with os.fdopen(os.open(new / name, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                file.write(content)
        _link(folder / _DATA, new.name)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        raise
    for name in files:
        link = folder / name
        if not link.is_symlink():
            _link(link, f"{_DATA}/{name}")
    for old in folder.glob("..*"):
        # Whoever reads a file of before at this moment gets an error and tries again.
        if old.is_dir() and not old.is_symlink() and old.name != new.name:
            shutil.rmtree(old, ignore_errors=True)


def _link(path: Path, target: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(path)
