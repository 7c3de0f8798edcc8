import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from services.cli import lock, screen, stack
from services.cli.keeper import PartState, PartStatus
from services.cli.stack_tls import TlsOptions

REPOSITORY = Path(__file__).parents[3]


def test_a_state_folder_is_held_by_one(tmp_path):
    state = tmp_path / "state"
    code = (
        "import sys; from pathlib import Path; from services.cli import lock\n"
        f"with lock.hold(Path({str(state)!r})):\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    with pytest.raises(lock.AlreadyRunningError, match=rf"pid {holder.pid}\)"), lock.hold(state):
        pass
    holder.kill()  # the kernel lets go of a lock whose holder dies
    holder.communicate()
    with lock.hold(state):
        assert (state / "lock").read_text() == f"{os.getpid()}\n"


def test_the_screen_says_where_everything_is(tmp_path):
    options = stack.Options(state_dir=tmp_path, models_dir=tmp_path, host="0.0.0.0", port=9090)
    console = Console(width=60, record=True, file=io.StringIO())
    states = {"auth": PartStatus("auth", PartState.READY, pid=42, ready_after_s=1.25)}
    shown = Path(".infermesh")
    console.print(screen.screen(options, shown, states, took_s=3.2), soft_wrap=True)
    text = console.export_text()
    assert "http://127.0.0.1:9090/v1\n" in text
    assert ".infermesh/admin.key\n" in text
    assert "auth" in text
    assert "1.2 s" in text


def test_the_curl_is_what_a_shell_understands(tmp_path):
    (tmp_path / "my key").write_text("im-secret\n")
    command = screen.curl("http://127.0.0.1:8080", tmp_path / "my key")
    printed = command.replace("curl -N", "printf '%s\\n'", 1)
    words = subprocess.run(
        ["bash", "-c", printed], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words[0] == "http://127.0.0.1:8080/v1/chat/completions"
    assert "Authorization: Bearer im-secret" in words
    assert words[-1].startswith('{"model": "smollm2-135m", "stream": true')


def _built(state: Path, **options: object) -> tuple[dict[str, str], str]:
    """Returns the sockets that parts are told to listen on, and Envoy's configuration."""
    parts = stack.build(stack.Options(state_dir=state, models_dir=state, **options))
    told = {p.name: p.env["INFERMESH_LISTEN_SOCKET"] for p in parts if _SOCKET in p.env}
    return told, (state / "run" / "envoy.yaml").read_text()


_SOCKET = "INFERMESH_LISTEN_SOCKET"


def test_envoy_and_the_services_agree_on_sockets(tmp_path):
    told, config = _built(tmp_path)
    assert {"auth", "registry", "routing", "embeddings", "metrics", "jobs"} <= set(told)
    for name, path in told.items():
        if not name.startswith("node-"):
            assert f'pipe: {{path: "{path}"}}' in config, name


def test_a_state_folder_with_a_long_path_does_without_sockets(tmp_path):
    deep = tmp_path / ("x" * (108 - len("/run/embeddings.sock") - len(str(tmp_path)) - 1))
    told, config = _built(deep)
    assert not told
    assert 'pipe: {path: "run/' in config  # Envoy's own, which is relative
    assert ".sock" not in config.replace("run/envoy-admin.sock", "")
    fits = deep.with_name(deep.name[1:])
    told, _ = _built(fits)
    assert len(told["embeddings"]) == 107


def test_tls_inside_the_mesh_leaves_no_plain_way_in(tmp_path):
    told, config = _built(tmp_path, tls=TlsOptions(mesh=True))
    assert not told
    assert ".sock" not in config.replace("run/envoy-admin.sock", "")
