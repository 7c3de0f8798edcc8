"""envoy/envoy.yaml is accepted by the real Envoy and says what the services' code says."""

import base64
import importlib
import os
import re
import string
import subprocess
from pathlib import Path

import yaml
from google.rpc import error_details_pb2, status_pb2

from infermesh.access.v1 import access_pb2
from infermesh.inference.v1 import inference_service_pb2, openai_service_pb2
from services.cli import binaries
from services.kit import errors, headers
from services.kit.settings import ServiceSettings

REPOSITORY = Path(__file__).parents[3]
TEXT = (REPOSITORY / "envoy" / "envoy.yaml").read_text()


def rendered() -> str:
    names = set(re.findall(r"\$\{([A-Z_]+)\}", TEXT))
    values = {name: "17999" if name.endswith("PORT") else "127.0.0.1" for name in names}
    values["INTERNAL_PORT"] = "17998"
    values["HSTS"] = values["CORS_ORIGINS"] = ""
    values["ADMIN_SOCKET"] = "admin.sock"
    values["LUA"] = str(REPOSITORY / "envoy" / "front.lua")
    values["LUA_FIELDS"] = str(REPOSITORY / "envoy" / "fields.lua")
    values["DESCRIPTORS"] = str(REPOSITORY / "gen" / "infermesh.binpb")
    values["API_DIR"] = str(REPOSITORY / "gen" / "api")
    return string.Template(TEXT).substitute(values)


def test_envoy_accepts_it(tmp_path: Path) -> None:
    config = tmp_path / "envoy.yaml"
    config.write_text(rendered())
    done = subprocess.run(
        [str(binaries.envoy()), "--mode", "validate", "--config-path", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_no_key_stands_twice() -> None:
    # YAML would take the last and say nothing.
    def look(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(set(keys)) == len(keys), f"{node.start_mark}: {keys}"
            for _, value in node.value:
                look(value)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                look(value)

    look(yaml.compose(rendered()))


def test_retries_see_the_health_of_nodes_at_once() -> None:
    # Merged for Envoy's usual second, it would hide a node that has just joined from retries: 503.
    clusters = yaml.safe_load(rendered())["static_resources"]["clusters"]
    (inference,) = [each for each in clusters if each["name"] == "inference"]
    assert inference["common_lb_config"]["update_merge_window"] == "0s"


def test_its_own_grpc_refusals_carry_error_info() -> None:
    encoded = re.search(r"grpc-status-details-bin, value: (\S+)}", TEXT)[1]
    raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4))
    status = status_pb2.Status.FromString(raw)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("SERVICE_UNAVAILABLE", errors.DOMAIN)
    assert f'inline_string: "{status.message}"' in TEXT


def test_headers_of_the_mesh_are_stripped_from_callers() -> None:
    listener = yaml.safe_load(rendered())["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    mutations = manager["early_header_mutation_extensions"][0]["typed_config"]["mutations"]
    prefixes = [
        m["remove_on_match"]["key_matcher"]["prefix"] for m in mutations if "remove_on_match" in m
    ]
    removed = {m["remove"] for m in mutations if "remove" in m}
    words = {v for k, v in vars(headers).items() if k.isupper()} - {headers.RETRY_AFTER}
    for name in words:
        assert name in removed or any(name.startswith(p) for p in prefixes), name


def test_every_typed_rpc_that_names_a_model_has_it_extracted() -> None:
    for module in (inference_service_pb2, openai_service_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                names_model = method.GetOptions().Extensions[access_pb2.names_model]
                typed = method.input_type.full_name != "google.api.HttpBody"
                if names_model and typed:
                    assert f"{method.full_name}: {{request_field_extractions" in TEXT


def test_the_container_renders_it_from_its_environment() -> None:
    dockerfile = (REPOSITORY / "envoy" / "Dockerfile").read_text()
    settings = dict(re.findall(r"\b([A-Z_]+)=(\S+)", dockerfile))
    render = str(REPOSITORY / "envoy" / "render.sh")
    path = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [render], env=path | settings, input=TEXT, capture_output=True, text=True, check=True
    )
    names = set(re.findall(r"\$\{([A-Z_]+)\}", TEXT))
    assert names - {"CORS_ORIGINS", "HSTS"} <= set(settings)
    front = yaml.safe_load(done.stdout)["static_resources"]["listeners"][0]
    assert front["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": 8080}
    del settings["AUTH_PORT"]
    done = subprocess.run(
        [render], env=path | settings, input=TEXT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "AUTH_PORT" in done.stderr


def test_compose_names_settings_that_exist() -> None:
    compose = yaml.safe_load((REPOSITORY / "compose" / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        for setting in service.get("environment", {}):
            if setting.startswith("INFERMESH_") and name != "envoy":  # render.sh reads its own
                module = importlib.import_module(f"services.{name}.settings")
                fields = {
                    field.upper()
                    for each in vars(module).values()
                    if isinstance(each, type) and issubclass(each, ServiceSettings)
                    for field in each.model_fields
                }
                assert setting.removeprefix("INFERMESH_") in fields, (name, setting)
