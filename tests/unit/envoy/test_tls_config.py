"""What the TLS scripts make of envoy/envoy.yaml: Envoy takes it, and nothing stays plain."""

import os
import re
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.cli import binaries
from services.cli.certs import FRONT, Certs
from services.cli.envoy_config import EnvoyTls, render

REPOSITORY = Path(__file__).parents[3]
TEXT = (REPOSITORY / "envoy" / "envoy.yaml").read_text()
VALUES = {
    **{
        name: "17999" if name.endswith("PORT") else "127.0.0.1"
        for name in re.findall(r"\$\{([A-Z_]+)\}", TEXT)
    },
    "INTERNAL_PORT": "17998",
    "HSTS": "max-age=31536000",
    "CORS_ORIGINS": "",
    "ADMIN_SOCKET": "admin.sock",
    "LUA": str(REPOSITORY / "envoy" / "front.lua"),
    "LUA_FIELDS": str(REPOSITORY / "envoy" / "fields.lua"),
    "DESCRIPTORS": str(REPOSITORY / "gen" / "infermesh.binpb"),
    "API_DIR": str(REPOSITORY / "gen" / "api"),
}
PEERS = {
    "inference": {"prefix": "spiffe://infermesh/node/"},
    "auth": {"exact": "spiffe://infermesh/service/auth"},
    "registry": {"exact": "spiffe://infermesh/service/registry"},
    "routing": {"exact": "spiffe://infermesh/service/routing"},
    "routing_xds": {"exact": "spiffe://infermesh/service/routing"},
    "embeddings": {"exact": "spiffe://infermesh/service/embeddings"},
    "metrics": {"exact": "spiffe://infermesh/service/metrics"},
    "jobs": {"exact": "spiffe://infermesh/service/jobs"},
}


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certs:
    certs = Certs(tmp_path_factory.mktemp("certs"))
    certs.init()
    certs.issue("envoy")
    certs.issue_front(["localhost"], timedelta(days=1))
    return certs


def where(certs: Certs, form: str) -> EnvoyTls:
    return EnvoyTls(
        front=certs.folder(FRONT) if form in ("front", "both") else None,
        mesh=certs.folder("envoy") if form in ("mesh", "both") else None,
    )


@pytest.mark.parametrize("form", ["plain", "front", "mesh", "both"])
def test_envoy_accepts_every_form(certs: Certs, form: str, tmp_path: Path) -> None:
    config = render(VALUES, where(certs, form), tmp_path)
    done = subprocess.run(
        [str(binaries.envoy()), "--mode", "validate", "--config-path", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def loaded(certs: Certs, form: str, folder: Path) -> dict[str, Any]:
    resources: dict[str, Any] = yaml.safe_load(
        render(VALUES, where(certs, form), folder).read_text()
    )["static_resources"]
    return resources


def test_plain_is_plain(certs: Certs, tmp_path: Path) -> None:
    text = render(VALUES, EnvoyTls(), tmp_path).read_text()
    assert "transport_sockets.tls" not in text
    assert list((tmp_path / "sds").iterdir()) == []


def test_every_cluster_verifies_who_answers(certs: Certs, tmp_path: Path) -> None:
    found = {}
    for cluster in loaded(certs, "both", tmp_path)["clusters"]:
        config = cluster["transport_socket"]["typed_config"]
        common = config["common_tls_context"]
        wanted = common["combined_validation_context"]["default_validation_context"]
        (san,) = wanted["match_typed_subject_alt_names"]
        assert san["san_type"] == "URI"
        found[cluster["name"]] = san["matcher"]
        assert common["tls_params"]["tls_minimum_protocol_version"] == "TLSv1_3"
        assert common["alpn_protocols"] == ["h2"]
        # A session that is resumed is not verified again.
        assert config["max_session_keys"] == 0
    assert found == PEERS


def test_every_listener_speaks_tls(certs: Certs, tmp_path: Path) -> None:
    front, internal = loaded(certs, "both", tmp_path)["listeners"]
    (chain,) = front["filter_chains"]
    config = chain["transport_socket"]["typed_config"]
    assert "require_client_certificate" not in config
    assert config["common_tls_context"]["alpn_protocols"] == ["h2", "http/1.1"]
    assert config["common_tls_context"]["tls_params"]["tls_minimum_protocol_version"] == "TLSv1_2"
    (chain,) = internal["filter_chains"]
    config = chain["transport_socket"]["typed_config"]
    assert config["require_client_certificate"] is True
    assert config["disable_stateless_session_resumption"] is True
    context = config["common_tls_context"]["combined_validation_context"]
    (san,) = context["default_validation_context"]["match_typed_subject_alt_names"]
    assert san["matcher"] == {
        "safe_regex": {"regex": "spiffe://infermesh/service/(embeddings|jobs)"}
    }


def test_nothing_but_tls_changes(certs: Certs, tmp_path: Path) -> None:
    plain = yaml.safe_load(render(VALUES, EnvoyTls(), tmp_path).read_text())
    both = yaml.safe_load(render(VALUES, where(certs, "both"), tmp_path).read_text())
    for cluster in both["static_resources"]["clusters"]:
        del cluster["transport_socket"]
    for listener in both["static_resources"]["listeners"]:
        for chain in listener["filter_chains"]:
            del chain["transport_socket"], chain["transport_socket_connect_timeout"]
    assert both == plain


def test_each_file_of_secrets_holds_one_and_watches_its_folder(
    certs: Certs, tmp_path: Path
) -> None:
    render(VALUES, where(certs, "both"), tmp_path)
    names = set()
    for path in (tmp_path / "sds").iterdir():
        (resource,) = yaml.safe_load(path.read_text())["resources"]
        names.add(resource["name"])
        secret = resource.get("tls_certificate") or resource["validation_context"]
        folder = Path(secret["watched_directory"]["path"])
        files = [each["filename"] for each in secret.values() if "filename" in each]
        assert files
        assert all(Path(file).exists() and Path(file).parent == folder for file in files)
    assert names == {"front", "envoy", "authority"}


def test_a_container_renders_the_same(certs: Certs, tmp_path: Path) -> None:
    echo = tmp_path / "echo"
    echo.write_text('#!/bin/sh\necho "$@"\n')
    echo.chmod(0o755)
    home = tmp_path / "etc"
    home.mkdir()
    dockerfile = (REPOSITORY / "envoy" / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (.*) /etc/infermesh/\S*$", dockerfile, re.MULTILINE)
    for name in " ".join(copied).split():
        target = home / Path(name).name
        target.symlink_to(REPOSITORY / name)
    values = VALUES | {
        "FRONT_TLS_DIR": str(certs.folder(FRONT)),
        "TLS_DIR": str(certs.folder("envoy")),
        "ENVOY": str(echo),
        "ENVOY_CONFIG_DIR": str(tmp_path / "made"),
        "PATH": os.environ["PATH"],
    }
    del values["CORS_ORIGINS"]
    done = subprocess.run(
        [str(home / "start.sh"), "--log-level", "info"],
        env=values,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"--config-path {tmp_path / 'made' / 'envoy.yaml'} --log-level info\n"
    ours = render(VALUES, where(certs, "both"), tmp_path)
    for name in ("envoy.yaml", "sds/front.yaml", "sds/envoy.yaml", "sds/authority.yaml"):
        theirs = yaml.safe_load((tmp_path / "made" / name).read_text().replace("/made/", "/"))
        assert theirs == yaml.safe_load((ours.parent / name).read_text()), name
