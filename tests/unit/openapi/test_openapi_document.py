"""The document in gen/ is valid, whole, and says what the protos say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from infermesh.access.v1 import access_pb2
from services.auth.contracts import services

API = Path(__file__).parents[3] / "gen" / "api"
DOCUMENT: dict[str, Any] = json.loads((API / "openapi.json").read_text())
SCHEMAS = DOCUMENT["components"]["schemas"]


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in DOCUMENT["paths"].items():
        for verb, operation in item.items():
            yield path, verb, operation


def find(name: str) -> dict[str, Any]:
    return next(o for _, _, o in operations() if o["operationId"] == name)


def test_it_is_openapi_3_1() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    validate(DOCUMENT, cls=OpenAPIV31SpecValidator)


def test_every_rest_rpc_is_there_with_its_roles() -> None:
    there = {o["x-infermesh-rpc"]: o for _, _, o in operations() if "x-infermesh-rpc" in o}
    count = 0
    for service in services():
        for method in service.methods:
            options = method.GetOptions()
            if not any(field.name == "http" for field, _ in options.ListFields()):
                assert method.full_name not in there
                continue
            count += 1
            roles = options.Extensions[access_pb2.allowed_roles]
            told = there[f"{service.full_name}.{method.name}"]["x-infermesh-roles"]
            assert told == [access_pb2.Role.Name(r).removeprefix("ROLE_").lower() for r in roles]
    assert count > 80


def test_every_body_is_described() -> None:
    assert [o["operationId"] for _, _, o in operations() if "undescribed" in json.dumps(o)] == []


def test_ids_are_unique_and_everything_has_words() -> None:
    ids = [o["operationId"] for _, _, o in operations()]
    assert len(ids) == len(set(ids))
    assert all(o["summary"] and o["description"] for _, _, o in operations())


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", "OpenAI"),
        ("/v1/messages/count_tokens", "Anthropic"),
        ("/api/chat", "Ollama"),
        ("/mesh/v1/keys", "OpenAI"),
    ],
)
def test_errors_are_the_dialects(path: str, dialect: str) -> None:
    schema = DOCUMENT["paths"][path]["post"]["responses"]["default"]["content"]
    assert schema["application/json"]["schema"]["$ref"].endswith(f"/{dialect}Error")


def test_examples_are_as_their_schema_says() -> None:
    found = 0
    for _, _, operation in operations():
        for media in operation.get("requestBody", {}).get("content", {}).values():
            if "example" in media:
                found += 1
                jsonschema.validate(
                    media["example"], {**media["schema"], "components": DOCUMENT["components"]}
                )
    assert found > 8


def test_rules_of_the_protos_are_there() -> None:
    model = find("OpenAIModelService_GetOpenAIModel")["parameters"][0]
    assert model["name"] == "model"
    assert model["schema"]["maxLength"] == 200
    policy = SCHEMAS["routing.v1.Policy"]["properties"]
    assert policy["load_factor"]["minimum"] == 1
    assert policy["scorers"]["additionalProperties"]["maximum"] == 1000
    assert policy["name"]["pattern"].startswith("^")
    assert policy["create_time"]["format"] == "date-time"
    # 64-bit numbers are texts in JSON.
    calls = SCHEMAS["routing.v1.SplitTarget"]["properties"]["calls"]
    assert calls["type"] == "string"
    assert "over all replicas" in calls["description"]


def test_what_is_in_the_path_is_not_in_the_body_too() -> None:
    update = find("KeyService_UpdateKey")
    body = update["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert "key_id" not in body
    assert [p["name"] for p in update["parameters"]] == ["key_id"]


def test_the_page_shows_every_call_and_nothing_comes_from_elsewhere() -> None:
    page = (API / "index.html").read_text()
    for _, _, operation in operations():
        assert f'id="{operation["operationId"]}"' in page
    assert "http://" not in page.replace("http://127.0.0.1", "")
    assert "<style" not in page
    assert " style=" not in page
    assert page.count("<script") == 1  # the policy allows files of the mesh's only
    assert " onclick" not in page
