"""What sockets.sed makes of envoy/envoy.yaml: Envoy calls every service by its path."""

import re
import subprocess
from pathlib import Path

import yaml

from services.cli import binaries
from services.cli.envoy_config import EnvoyTls, render

REPOSITORY = Path(__file__).parents[3]
TEXT = (REPOSITORY / "envoy" / "envoy.yaml").read_text()
PARTS = ("auth", "registry", "routing", "embeddings", "metrics", "jobs")


def values() -> dict[str, str]:
    names = re.findall(r"\$\{([A-Z_]+)\}", TEXT)
    return {
        **{name: "17999" if name.endswith("PORT") else "127.0.0.1" for name in names},
        **{f"{part.upper()}_SOCKET": f"run/{part}.sock" for part in PARTS},
        "INTERNAL_PORT": "17998",
        "HSTS": "",
        "CORS_ORIGINS": "",
        "ADMIN_SOCKET": "admin.sock",
        "LUA": str(REPOSITORY / "envoy" / "front.lua"),
        "LUA_FIELDS": str(REPOSITORY / "envoy" / "fields.lua"),
        "DESCRIPTORS": str(REPOSITORY / "gen" / "infermesh.binpb"),
        "API_DIR": str(REPOSITORY / "gen" / "api"),
    }


def test_services_are_called_by_their_paths_and_callers_come_by_tcp(tmp_path: Path) -> None:
    config = render(values(), EnvoyTls(), tmp_path, has_sockets=True)
    resources = yaml.safe_load(config.read_text())["static_resources"]
    called = {}
    for cluster in resources["clusters"]:
        if cluster["type"] == "EDS":
            continue
        assert cluster["type"] == "STATIC", cluster["name"]
        (endpoints,) = cluster["load_assignment"]["endpoints"]
        (endpoint,) = endpoints["lb_endpoints"]
        called[cluster["name"]] = endpoint["endpoint"]["address"]
    expected = {part: {"pipe": {"path": f"run/{part}.sock"}} for part in PARTS}
    assert called == {**expected, "routing_xds": expected["routing"]}
    for listener in resources["listeners"]:
        assert list(listener["address"]) == ["socket_address"]
    done = subprocess.run(
        [str(binaries.envoy()), "--mode", "validate", "--config-path", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
