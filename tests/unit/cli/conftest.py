"""Tiny child processes in the place of the mesh's parts."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.cli.part import Part

MakePart = Callable[..., Part]


async def _ready() -> bool:
    return True


@pytest.fixture
def make_part(tmp_path: Path) -> MakePart:
    def make(name: str, code: str = "import time; time.sleep(60)", **fields: Any) -> Part:
        fields.setdefault("probe", _ready)
        return Part(
            name=name,
            argv=[sys.executable, "-S", "-c", code],
            env={"PATH": os.environ["PATH"]},
            log_file=tmp_path / "logs" / f"{name}.log",
            **fields,
        )

    return make
