import io

import pytest
from rich.console import Console

from infermesh.registry.v1 import resources_pb2
from services.cli import views
from services.cli.tables import table

COLUMNS = ("node", "state", "address", "models")
ROW = ("node-of-the-second-rack", "engine down", "127.0.0.1:17021", "smollm2-135m, other-model")


def printed(width: int, *, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    console.print(table("Nodes", COLUMNS, [ROW]), crop=False)
    return out.getvalue()


@pytest.mark.parametrize("width", [30, 60, 75])
def test_a_narrow_terminal_breaks_only_between_words(width):
    words = printed(width, terminal=True).split()
    for cell in ROW:
        assert set(cell.split()) <= set(words)
    assert "…" not in words


def test_a_terminal_that_is_wide_enough_has_a_line_for_each_row():
    assert len(printed(120, terminal=True).splitlines()) == 4


def test_a_pipe_has_a_line_for_each_row_at_any_width():
    assert printed(30, terminal=False).splitlines()[-1].split() == " ".join(ROW).split()
    assert len(printed(30, terminal=False).splitlines()) == 4


@pytest.mark.parametrize(
    ("version", "shown"),
    [("b4321-abc", "llamacpp b4321-abc"), ("b0-unknown", "llamacpp"), ("", "llamacpp")],
)
def test_a_version_that_says_nothing_is_hidden(version, shown):
    node = resources_pb2.Node(engine="llamacpp", engine_version=version)
    assert views._engine(node) == shown
