"""Which origins are taken, by `infermesh up` and by the container alike."""

import os
import subprocess
from pathlib import Path

import pytest

from services.cli import cors

RENDER = Path(__file__).parents[3] / "envoy" / "render.sh"


def rendered(origins: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(RENDER)],
        env={"PATH": os.environ["PATH"], "INFERMESH_CORS_ORIGINS": origins},
        input="[${CORS_ORIGINS}]",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", "[]"),
        ("*", '[{exact: "*"}]'),
        (
            "https://a.example.com,http://localhost:3000, http://[::1]:80 ",
            '[{exact: "https://a.example.com"}, {exact: "http://localhost:3000"}, '
            '{exact: "http://[::1]:80"}]',
        ),
    ],
)
def test_both_make_the_same_of_it(said: str, expected: str) -> None:
    assert f"[{cors.matchers(cors.origins((), {cors.SETTING: said}))}]" == expected
    assert rendered(said).stdout.strip() == expected


@pytest.mark.parametrize(
    "said", ["a.example.com", 'https://a"}, {exact: "*', "https://a/path", "null", "**", "https://"]
)
def test_what_is_no_origin_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match="no origin"):
        cors.origins((said,), {})
    done = rendered(said)
    assert done.returncode != 0
    assert "no origin" in done.stderr


def test_what_the_command_line_says_wins() -> None:
    environment = {cors.SETTING: "https://b"}
    assert cors.origins(("https://a", "https://a"), environment) == ("https://a",)
    assert cors.origins((), environment) == ("https://b",)
