"""The one screen that `infermesh up` shows when the mesh is up."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from services.cli import stack
from services.cli.keeper import PartStatus
from services.cli.tables import table

_CHAT = {
    "model": stack.CHAT_MODEL,
    "stream": True,
    "temperature": 0,
    "messages": [
        {
            "role": "system",
            "content": "You are a helpful assistant. Reply in one short English sentence.",
        },
        {"role": "user", "content": "What is the capital of France?"},
    ],
}


def screen(
    options: stack.Options,
    shown_state_dir: Path,
    states: Mapping[str, PartStatus],
    took_s: float,
    ca_file: Path | None = None,
) -> RenderableType:
    """Returns the address, where the key is, a command to copy, and the state of each part."""
    base = options.front_url
    key_file = shown_state_dir / "admin.key"
    rows = [
        (
            status.name,
            status.state.value,
            str(status.pid or ""),
            "" if status.ready_after_s is None else f"{status.ready_after_s:.1f} s",
            str(status.restarts or ""),
        )
        for status in states.values()
    ]
    return Group(
        table("", ("part", "state", "pid", "ready after", "restarts"), rows),
        Text.assemble(("infermesh is up", "bold green"), f", after {took_s:.1f} s\n"),
        Text.assemble(("OpenAI base URL  ", "bold"), f"{base}/v1"),
        Text.assemble(("Admin key        ", "bold"), str(key_file)),
        *([Text.assemble(("Authority        ", "bold"), str(ca_file))] if ca_file else ()),
        Text.assemble(("Logs             ", "bold"), str(shown_state_dir / "logs")),
        Text(f"\n{curl(base, key_file, ca_file)}\n"),
        Text("Ctrl-C stops everything.", style="dim"),
    )


def curl(base: str, key_file: Path, ca_file: Path | None = None) -> str:
    """Returns a command that streams a chat, to be copied into a shell."""
    trusting = f"--cacert {shlex.quote(str(ca_file))} " if ca_file else ""
    return (
        f"curl -N {trusting}{base}/v1/chat/completions \\\n"
        f'  -H "Authorization: Bearer $(cat {shlex.quote(str(key_file))})" \\\n'
        "  -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(json.dumps(_CHAT))}"
    )
