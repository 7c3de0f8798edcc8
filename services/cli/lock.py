"""Keeps two meshes off one state folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class AlreadyRunningError(Exception):
    """Another process runs the mesh of this state folder."""


@contextmanager
def hold(state_dir: Path) -> Iterator[None]:
    """Holds the state folder, which is made if it is not there. The kernel lets go if we die.

    Raises:
        AlreadyRunningError: Another process holds it.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (state_dir / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid = file.read().strip() or "unknown"
            raise AlreadyRunningError(
                f"A mesh is running already in {state_dir} (pid {pid}). Nothing was touched."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)
