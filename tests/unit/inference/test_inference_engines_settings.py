import pytest

from services.inference.engines.dialect import EngineModel, EngineOptions
from services.inference.settings import InferenceSettings
from services.kit.settings import load

GOOD = {
    "LISTEN": "127.0.0.1:17021",
    "NODE_ID": "node-1",
    "ENGINE": "openai",
    "ENGINE_URL": "https://api.example.com/v1/",
    "MESH_ADDRESS": "mesh.example:8080",
    "NODE_KEY": "im-x",
    "STATE_DIR": "state",
}


def settings(monkeypatch, **more):
    for name, value in (GOOD | more).items():
        monkeypatch.setenv(f"INFERMESH_{name}", value)
    return load(InferenceSettings)


def test_an_address_is_taken_with_its_version_and_without(monkeypatch):
    assert settings(monkeypatch).engine_url == "https://api.example.com"
    azure = settings(monkeypatch, ENGINE_URL="https://x.openai.azure.com/openai/v1")
    assert azure.engine_url == "https://x.openai.azure.com/openai"


def test_what_the_operator_says_of_the_engine(monkeypatch):
    said = settings(
        monkeypatch, ENGINE_API_KEY="sk-1", ENGINE_MODELS="gpt-4o, emb=embeddings,x=chat"
    )
    assert said.engine_options == EngineOptions(
        api_key="sk-1",
        models=(
            EngineModel("gpt-4o", can_chat=True, can_embed=False),
            EngineModel("emb", can_chat=False, can_embed=True),
            EngineModel("x", can_chat=True, can_embed=False),
        ),
        is_remote=True,
    )
    assert "sk-1" not in repr(said)


def test_an_engine_beside_the_node_is_not_remote(monkeypatch):
    said = settings(monkeypatch, ENGINE="vllm", ENGINE_URL="http://127.0.0.1:8000")
    assert said.engine_options == EngineOptions()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"ENGINE": "vllm", "ENGINE_MODELS": "m"}, "INFERMESH_ENGINE_API_VERSION"),
        ({}, "INFERMESH_ENGINE_MODELS"),
    ],
)
def test_azure_needs_its_dialect_and_its_deployments(monkeypatch, capsys, more, named):
    with pytest.raises(SystemExit):
        settings(monkeypatch, ENGINE_API_VERSION="2024-10-21", **more)
    assert named in capsys.readouterr().err
    said = settings(
        monkeypatch, ENGINE="openai", ENGINE_API_VERSION="2024-10-21", ENGINE_MODELS="m"
    )
    assert said.engine_options.api_version == "2024-10-21"
