"""The README's examples run as they stand, but for the port."""

import os
import re
import subprocess
import sys

import pytest

from e2e.mesh import REPOSITORY, Mesh

BLOCKS = re.findall(
    r"^```(\w+)\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL
)
# What starts a mesh, or needs another machine, or stays until Ctrl-C.
NOT_RUN = ("make up", "export KEY", "mesh-host", "--model-file")


def examples() -> list[tuple[str, str]]:
    return [block for block in BLOCKS if not any(words in block[1] for words in NOT_RUN)]


def test_all_five_ways_are_there() -> None:
    languages = [language for language, _ in examples()]
    assert languages.count("python") == 2
    assert languages.count("js") == 1
    assert languages.count("sh") == 4


@pytest.mark.parametrize(("language", "code"), examples())
def test_example(mesh: Mesh, language: str, code: str) -> None:
    code = code.replace("127.0.0.1:8080", mesh.address)
    if "infermesh chat" in code:
        code = code.replace("infermesh chat smollm2-135m", "infermesh chat smollm2-135m Hello")
    command = {
        "sh": ["bash", "-euc", code],
        "python": [sys.executable, "-c", code],
        "js": ["node", "--input-type=module", "--eval", code],
    }[language]
    environment = {
        **os.environ,
        "KEY": mesh.admin_key,
        "INFERMESH_KEY": mesh.admin_key,
        "INFERMESH_ADDRESS": mesh.address,
    }
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert '"error"' not in done.stdout
