"""Callers with tokens of an external issuer, through the front door: REST, gRPC, the SDK."""

import json
import os
import signal
import time
from collections.abc import Iterator

import grpc
import httpx
import openai
import pytest

import oidc_issuer
from e2e.mesh import CHAT, Mesh, start_mesh
from infermesh.auth.v1 import key_service_pb2, key_service_pb2_grpc
from infermesh.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from oidc_issuer import IssuerProcess

PORT, BASE_PORT, ISSUER_PORT = 23380, 23300, 23390
SETTING = "INFERMESH_OIDC_ISSUERS"
MESSAGES = [{"role": "user", "content": "Say yes."}]

# Auth asks an issuer for an unknown key no more than once in this time.
SPACING_S = 10.0


@pytest.fixture(scope="module")
def issuer() -> Iterator[IssuerProcess]:
    with oidc_issuer.running(ISSUER_PORT) as process:
        yield process


@pytest.fixture(scope="module")
def mesh(issuer: IssuerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh of its own, since whom it trusts is a setting."""
    said = {
        "name": "acme",
        "issuer": issuer.url,
        "audience": oidc_issuer.AUDIENCE,
        "tenant_claim": "org.tenant",
        "role_claim": "realm_access.roles",
        "roles": {"mesh-admin": "admin", "mesh-audit": "auditor"},
        "default_role": "user",
        "models_claim": "models",
    }
    before = os.environ.get(SETTING)
    os.environ[SETTING] = json.dumps([said])
    try:
        state = tmp_path_factory.mktemp("oidc") / "state"
        mesh = start_mesh(state, PORT, BASE_PORT, "--nodes", "1")
    finally:
        os.environ.pop(SETTING)
        if before is not None:
            os.environ[SETTING] = before
    mesh.wait("nodes", lambda: mesh.ready_nodes() >= {"node-1"}, 60)
    yield mesh
    mesh.process.send_signal(signal.SIGINT)
    mesh.process.wait(60)


def token(issuer: IssuerProcess, algorithm: str = "RS256", /, **claims: object) -> str:
    good = {"org": {"tenant": "oidc-acme"}, "models": ["*"]}
    return issuer.token(algorithm, 300, **{**good, **claims})


def status(mesh: Mesh, text: str) -> int:
    with mesh.http(text) as http:
        return http.get("/v1/models").status_code


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_chat_with_a_token(mesh: Mesh, issuer: IssuerProcess, algorithm: str) -> None:
    subject = f"chat-{algorithm}"
    with mesh.openai(token(issuer, algorithm, sub=subject)) as client:
        answer = client.chat.completions.create(model=CHAT, messages=MESSAGES, max_tokens=3)
        assert answer.usage is not None
        streamed = client.chat.completions.create(
            model=CHAT, messages=MESSAGES, max_tokens=3, stream=True
        )
        assert list(streamed)
    with mesh.http() as admin:

        def rows() -> list[dict[str, object]]:
            found = admin.get("/mesh/v1/usage/events", params={"page_size": 100}).json()["events"]
            key_ids = {event["key_id"] for event in found if event["tenant"] == "oidc-acme"}
            return [key_id for key_id in key_ids if key_id.startswith("oidc:acme:")]

        # One caller for each subject.
        count = ["RS256", "ES256", "EdDSA"].index(algorithm) + 1
        mesh.wait("ledger", lambda: len(rows()) >= count)
        tenants = admin.get("/mesh/v1/tenants").json()["tenants"]
        assert "oidc-acme" in {each["tenant"] for each in tenants}


def test_grpc_with_a_token(mesh: Mesh, issuer: IssuerProcess) -> None:
    with grpc.insecure_channel(mesh.address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        request = inference_service_pb2.ChatRequest(model=CHAT, max_tokens=3)
        request.messages.add(role=inference_service_pb2.CHAT_ROLE_USER).content.add(text="Say yes.")
        metadata = (("authorization", f"Bearer {token(issuer, 'ES256')}"),)
        assert stub.Chat(request, metadata=metadata, timeout=60).usage.completion_tokens > 0
        expired = issuer.token("RS256", -60, org={"tenant": "oidc-acme"}, models=["*"])
        metadata = (("authorization", f"Bearer {expired}"),)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Chat(request, metadata=metadata, timeout=60)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert caught.value.details() == "The bearer token is expired."


def test_roles_come_from_the_claim(mesh: Mesh, issuer: IssuerProcess) -> None:
    plain = token(issuer)
    admin = token(issuer, realm_access={"roles": ["x", "mesh-admin"]})
    with mesh.http(plain) as http:
        assert http.get("/mesh/v1/keys").status_code == 403
    with mesh.http(admin) as http:
        assert http.get("/mesh/v1/keys").status_code == 200
    with grpc.insecure_channel(mesh.address) as channel:
        keys = key_service_pb2_grpc.KeyServiceStub(channel)
        metadata = (("authorization", f"Bearer {admin}"),)
        assert keys.ListKeys(key_service_pb2.ListKeysRequest(), metadata=metadata, timeout=15).keys
    told = {
        ("oidc:acme:", "user", "AUDIT_KIND_DENIAL"),
        ("oidc:acme:", "admin", "AUDIT_KIND_CALL"),
    }
    with mesh.http(token(issuer, realm_access={"roles": ["mesh-audit"]})) as http:

        def who() -> set[tuple[str, str, str]]:
            events = http.get("/mesh/v1/audit/events", params={"page_size": 200}).json()["events"]
            return {(event["key_id"][:10], event["role"], event["kind"]) for event in events}

        mesh.wait("the audit log", lambda: who() >= told)


def test_models_come_from_the_claim(mesh: Mesh, issuer: IssuerProcess) -> None:
    client = mesh.openai(token(issuer, models=["other-*"]))
    with client, pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model=CHAT, messages=MESSAGES, max_tokens=3)
    assert caught.value.code == "model_not_found"


def test_what_is_no_good_is_told_little_and_goes_nowhere(mesh: Mesh, issuer: IssuerProcess) -> None:
    good = token(issuer)
    for bad in (
        good[:-8] + "AAAAAAAA",
        "eyJhbGciOiJub25lIn0." + good.split(".")[1] + ".",
        token(issuer, aud="other"),
        token(issuer, org={}),
        token(issuer, models=[]),
        "eyJ" + "A" * 9000 + ".A.A",
    ):
        answer = httpx.get(f"{mesh.url}/v1/models", headers={"authorization": f"Bearer {bad}"})
        assert answer.status_code == 401, bad[:100]
        assert answer.json()["error"]["message"] == "The bearer token is not valid."
        assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    logs = "".join(path.read_text() for path in (mesh.state_dir / "logs").glob("*.log"))
    assert good.split(".")[1] not in logs
    assert good.split(".")[2] not in logs


def test_a_rotation_needs_no_restart(mesh: Mesh, issuer: IssuerProcess) -> None:
    old = token(issuer)
    assert status(mesh, old) == 200
    issuer.rotate(keep=True)
    new = token(issuer, sub="new")
    mesh.wait("the new key", lambda: status(mesh, new) == 200, SPACING_S + 30)
    assert status(mesh, old) == 200
    # At once, for the first token of the next key, once ten seconds have passed.
    time.sleep(SPACING_S)
    issuer.rotate(keep=False)
    asked = issuer.requests()
    assert status(mesh, token(issuer, sub="newest")) == 200
    assert issuer.requests() == asked + 1
    assert status(mesh, old) == 401
    assert status(mesh, new) == 401


def test_the_issuer_may_be_away(mesh: Mesh, issuer: IssuerProcess) -> None:
    known, unseen = token(issuer), token(issuer, sub="unseen")
    mesh.wait("the token", lambda: status(mesh, known) == 200, SPACING_S + 30)
    issuer.stop()
    try:
        assert status(mesh, known) == 200
        assert status(mesh, unseen) == 200
        mesh.kill("auth")
        # Keys of the mesh's own need no issuer; of tokens auth knows nothing any more.
        mesh.wait("auth", lambda: status(mesh, mesh.admin_key) == 200, 40)
        assert status(mesh, known) == 503
    finally:
        issuer.start()
    mesh.wait("the issuer", lambda: status(mesh, token(issuer)) == 200, SPACING_S + 30)
    # It came back with other keys.
    assert status(mesh, known) == 401
