import pytest

from services.inference.settings import InferenceSettings
from services.kit.settings import load

GOOD = {
    "LISTEN": "127.0.0.1:17021",
    "NODE_ID": "node-1",
    "ENGINE": "llamacpp",
    "ENGINE_URL": "http://127.0.0.1:17031/",
    "MESH_ADDRESS": "mesh.example:8080",
    "NODE_KEY": "im-x",
    "STATE_DIR": "state",
}


@pytest.fixture
def environment(monkeypatch):
    for name, value in GOOD.items():
        monkeypatch.setenv(f"INFERMESH_{name}", value)
    return monkeypatch


def test_what_is_set(environment):
    settings = load(InferenceSettings)
    assert settings.address == "127.0.0.1:17021"
    assert settings.engine_url == "http://127.0.0.1:17031"
    assert "im-x" not in repr(settings)
    environment.setenv("INFERMESH_ADVERTISE", "10.0.0.7:17021")
    assert load(InferenceSettings).address == "10.0.0.7:17021"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NODE_ID", "-x"),
        ("NODE_ID", "a" * 64),
        ("ENGINE", "gpt"),
        ("ENGINE_URL", "127.0.0.1:17031"),
        ("ENGINE_URL", "ftp://engine"),
        ("ENGINE_URL", "http://me:secret@engine"),
        ("ENGINE_URL", "http://engine?x=1"),
        ("ENGINE_API_KEY", "two\r\nlines"),
        ("ENGINE_API_VERSION", "a&b"),
        ("ENGINE_MODELS", "m=pictures"),
        ("ENGINE_MODELS", "=chat"),
        ("MESH_ADDRESS", "mesh"),
        ("NODE_KEY", ""),
        ("ADVERTISE", "here"),
        ("LISTEN", "0.0.0.0:17021"),
        ("ENGINE_IDLE_TIMEOUT_S", "0"),
        ("MAX_IN_FLIGHT", "0"),
    ],
)
def test_what_is_wrong_is_named(environment, capsys, name, value):
    environment.setenv(f"INFERMESH_{name}", value)
    with pytest.raises(SystemExit) as caught:
        load(InferenceSettings)
    assert caught.value.code == 2
    # The rule about LISTEN is over two settings, and its sentence names the one to set.
    assert ("ADVERTISE" if name == "LISTEN" else name) in capsys.readouterr().err
