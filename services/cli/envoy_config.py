"""Renders Envoy's configuration, with TLS where it is wanted; envoy/start.sh is its twin."""

import string
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).parents[2] / "envoy"


@dataclass(frozen=True)
class EnvoyTls:
    """Where Envoy finds its TLS files.

    Attributes:
        front: Folder with the front door's `cert.pem` and `key.pem`; None for no TLS there.
        mesh: Folder with Envoy's `ca.pem`, `cert.pem` and `key.pem` inside the mesh; None for no
            TLS there.
    """

    front: Path | None = None
    mesh: Path | None = None


def render(
    values: Mapping[str, str], tls: EnvoyTls, folder: Path, *, has_sockets: bool = False
) -> Path:
    """Writes the configuration into a folder and returns the file that Envoy is started with.

    Args:
        values: What the capitals in braces stand for, but for TLS.
        tls: Where TLS is wanted.
        folder: For the files.
        has_sockets: Whether services are reached over Unix sockets, whose paths are among the
            values as `AUTH_SOCKET` and so on; else over `AUTH_HOST` and `AUTH_PORT`.

    Raises:
        KeyError: A value is missing.
    """
    text = (_SOURCE / "envoy.yaml").read_text()
    sds = folder / "sds"
    values = {
        **values,
        "SDS_DIR": str(sds),
        "FRONT_TLS_DIR": str(tls.front),
        "TLS_DIR": str(tls.mesh),
    }
    if has_sockets:
        text = _edited(text, "sockets.sed")
    secrets = []
    if tls.front is not None:
        text = _edited(text, "tls_front.sed")
        secrets.append("front.yaml")
    if tls.mesh is not None:
        text = _edited(text, "tls_mesh.sed")
        secrets += ["envoy.yaml", "authority.yaml"]
    sds.mkdir(mode=0o700, exist_ok=True)
    for name in secrets:
        template = string.Template((_SOURCE / "sds" / name).read_text())
        (sds / name).write_text(template.substitute(values))
    config = folder / "envoy.yaml"
    config.write_text(string.Template(text).substitute(values))
    return config


def _edited(text: str, script: str) -> str:
    # By the same program as in a container, which has no Python.
    return subprocess.run(  # noqa: S603
        ["sed", "-f", str(_SOURCE / script)],  # noqa: S607
        input=text,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
