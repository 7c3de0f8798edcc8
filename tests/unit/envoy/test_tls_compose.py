"""compose/tls.yaml gives every part its own certificate, and the authority's key to auth alone."""

from pathlib import Path

import yaml

from services.inference.node_settings import NodeSettings
from services.kit.settings import ServiceSettings

COMPOSE = Path(__file__).parents[3] / "compose"
SERVICES = {"auth", "registry", "routing", "metrics", "embeddings", "jobs"}


def test_every_part_has_its_own_folder_and_no_other() -> None:
    services = yaml.safe_load((COMPOSE / "tls.yaml").read_text())["services"]
    base = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    assert set(services) - {"certs"} == set(base) - {"postgres", "redis"}
    for name in SERVICES:
        mounts = {each["target"]: each for each in services[name]["volumes"]}
        folder = services[name]["environment"]["INFERMESH_TLS_DIR"]
        assert mounts.pop(folder)["volume"] == {"subpath": f"service/{name}"}
        if name == "auth":
            ca_dir = services[name]["environment"]["INFERMESH_CA_DIR"]
            assert mounts.pop(ca_dir)["volume"] == {"subpath": "ca"}
        assert not mounts
        assert services[name]["depends_on"]["certs"] == {"condition": "service_healthy"}
    envoy = services["envoy"]
    mounts = {each["target"]: each["volume"]["subpath"] for each in envoy["volumes"]}
    said = envoy["environment"]
    assert mounts == {said["TLS_DIR"]: "envoy", said["FRONT_TLS_DIR"]: "front"}


def test_its_settings_exist() -> None:
    assert {"tls_dir", "tls_allow"} <= set(ServiceSettings.model_fields)
    assert {"mesh_ca", "mesh_name", "node_certificate"} <= set(NodeSettings.model_fields)
