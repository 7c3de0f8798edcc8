"""The snippets of docs/clients.md run as they stand.

Those with large libraries do where `make test-clients` has installed them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.mesh import REPOSITORY, Mesh

CLIENTS = REPOSITORY / ".venv" / "clients" / "bin"
BLOCKS = re.findall(
    r"^```(python|js|sh) (\w+)\n(.*?)^```",
    (REPOSITORY / "docs" / "clients.md").read_text(),
    re.MULTILINE | re.DOTALL,
)
OWN = {("python", "openai"), ("js", "openai"), ("python", "grpc"), ("js", "grpc"), ("sh", "buf")}
LARGE = {("python", "langchain"), ("python", "llamaindex"), ("sh", "llm")}


def test_all_are_there() -> None:
    assert {(language, name) for language, name, _ in BLOCKS} >= OWN | LARGE


@pytest.mark.parametrize(
    ("language", "name", "code"),
    [pytest.param(*block, id="-".join(block[:2])) for block in BLOCKS if block[:2] in OWN | LARGE],
)
def test_snippet(mesh: Mesh, tmp_path: Path, language: str, name: str, code: str) -> None:
    python = sys.executable
    if (language, name) in LARGE:
        if not CLIENTS.exists():
            pytest.skip("`make test-clients` installs this client")
        python = str(CLIENTS / "python")
    command = {
        "sh": ["bash", "-euc", code],
        "python": [python, "-c", code],
        "js": ["node", "--input-type=module", "--eval", code],
    }[language]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ
        | {
            "MESH_URL": mesh.url,
            "MESH_KEY": mesh.admin_key,
            "PATH": f"{CLIENTS}:{os.environ['PATH']}",
            "LLM_USER_PATH": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert '"error"' not in done.stdout
