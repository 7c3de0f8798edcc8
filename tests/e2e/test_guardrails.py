"""What a key's guardrails let through to an engine, by REST and gRPC, and how soon they change."""

import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import openai
import pytest

from e2e.fleet import Fleet
from e2e.mesh import CHAT, EMBED, Mesh
from e2e.recording import RecordingEngine, recording_engine
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.inference.v1 import inference_service_pb2_grpc
from services.kit.errors import from_rpc_error
from support import within

MODEL = "recorded-guarded"
MAIL = "jane.doe@example.com"
WORD = "<EMAIL_ADDRESS>"


@pytest.fixture(scope="module")
def engine(fleet: Fleet) -> Iterator[RecordingEngine]:
    with recording_engine(MODEL) as engine:
        fleet.join({"guarded": ("--engine", "openai", "--url", engine.url)})
        yield engine


@pytest.fixture(scope="module")
def secret(fleet: Fleet) -> str:
    """A key that was made as an operator makes it."""
    made = fleet.command(
        *("keys", "create", "guarded", "--max-prompt-chars", "500"),
        *("--block", r"(?i)project\s+zebra", "--redact", "email-addresses", "--redact", "secrets"),
    )
    return made.stdout.strip()


@pytest.fixture
def client(mesh: Mesh, secret: str) -> Iterator[openai.OpenAI]:
    with mesh.openai(secret) as client:
        yield client


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def key_id(mesh: Mesh, name: str) -> str:
    with mesh.http() as http:
        keys = http.get("/mesh/v1/keys").raise_for_status().json()["keys"]
    return next(each["key_id"] for each in keys if each["display_name"] == name)


@pytest.mark.parametrize("stream", [False, True])
def test_the_engine_gets_the_redacted_prompt(
    client: openai.OpenAI, engine: RecordingEngine, stream: bool
) -> None:
    text = f"Write to {MAIL}, password: hunter2, wörd."
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=user(text), stream=stream
    )
    assert raw.headers["x-mesh-redactions"] == "2"
    if stream:
        assert "".join(c.choices[0].delta.content or "" for c in raw.parse() if c.choices) == "Yes"
    else:
        assert raw.parse().choices[0].message.content == "Yes"
    content = engine.bodies[-1]["messages"][0]["content"]
    assert content == f"Write to {WORD}, password: <SECRET>, wörd."


def test_others_keys_have_no_guardrails(mesh: Mesh, engine: RecordingEngine) -> None:
    with mesh.http() as http:
        # Nobody outside says what a key's guardrails are, nor takes them away.
        reply = http.post(
            "/v1/chat/completions",
            json={"model": MODEL, "messages": user(f"project zebra, {MAIL}")},
            headers={"x-mesh-guardrails": "EgV6ZWJyYQ=="},
        )
    assert reply.status_code == 200, reply.text
    assert "x-mesh-redactions" not in reply.headers
    assert engine.bodies[-1]["messages"] == user(f"project zebra, {MAIL}")


@pytest.mark.parametrize(
    "text", ["Project  Zebra", "ｐｒｏｊｅｃｔ　ｚｅｂｒａ", "pro\u200bject zebra"]
)
def test_what_is_blocked_is_refused_as_openai_does(
    client: openai.OpenAI, engine: RecordingEngine, text: str
) -> None:
    asked = len(engine.bodies)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=user(text))
    error = caught.value
    assert (error.code, error.param) == ("content_blocked", "messages[0].content")
    assert error.type == "invalid_request_error"
    assert "ebra" not in error.message
    assert len(engine.bodies) == asked


def test_escapes_in_the_body_hide_nothing(mesh: Mesh, secret: str, engine: RecordingEngine) -> None:
    body = (
        b'{"model":"%b","messages":[{"role":"user","content":"hi"}],'
        b'"messages":[{"role":"user","content":"\\u0070roject zebra"}]}' % MODEL.encode()
    )
    with mesh.http(secret) as http:
        headers = {"content-type": "application/json"}
        reply = http.post("/v1/chat/completions", content=body, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "content_blocked")


def test_long_prompts_and_tokens_are_refused(client: openai.OpenAI, engine: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=user("x" * 501))
    assert caught.value.code == "input_too_long"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt=[1, 2, 3])
    assert (caught.value.code, caught.value.param) == ("unsupported", "prompt")


def test_grpc(mesh: Mesh, secret: str, engine: RecordingEngine) -> None:
    def chat(text: str) -> pb.ChatRequest:
        message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=[pb.ContentPart(text=text)])
        return pb.ChatRequest(model=MODEL, messages=[message])

    metadata = (("authorization", f"Bearer {secret}"),)
    with grpc.insecure_channel(mesh.address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        stub.Chat(chat(f"to {MAIL}"), metadata=metadata, timeout=20)
        assert engine.bodies[-1]["messages"][0]["content"] == f"to {WORD}"
        with pytest.raises(grpc.RpcError) as caught:
            stub.Chat(chat("project zebra"), metadata=metadata, timeout=20)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        error = from_rpc_error(caught.value)
        assert error is not None
        assert (error.reason_name, error.metadata) == ("CONTENT_BLOCKED", {"pattern": "0"})


def test_embeddings(client: openai.OpenAI, mesh: Mesh, secret: str) -> None:
    def vector(by: openai.OpenAI, text: str) -> list[float]:
        return by.embeddings.create(model=EMBED, input=text).data[0].embedding

    with mesh.openai() as admin:
        assert vector(client, f"to {MAIL}") == vector(admin, f"to {WORD}")
        assert vector(client, f"to {MAIL}") != vector(admin, f"to {MAIL}")
    with pytest.raises(openai.BadRequestError) as caught:
        vector(client, "project zebra")
    assert (caught.value.code, caught.value.param) == ("content_blocked", "input[0]")
    request = pb.EmbedRequest(model=EMBED, inputs=["project zebra"])
    with grpc.insecure_channel(mesh.address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Embed(request, metadata=(("authorization", f"Bearer {secret}"),), timeout=20)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_real_engine_gets_the_redacted_prompt(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT, messages=user(f"Say the word: {MAIL}"), max_tokens=4
    )
    assert answer.choices[0].message.content is not None


def test_changes_hold_within_a_second(mesh: Mesh, fleet: Fleet, engine: RecordingEngine) -> None:
    secret = fleet.command("keys", "create", "changing").stdout.strip()
    changing = key_id(mesh, "changing")

    def blocked() -> bool:
        with mesh.http(secret) as http:
            body = {"model": MODEL, "messages": user("a zebra")}
            return http.post("/v1/chat/completions", json=body).status_code == 400

    def change(guardrails: dict[str, Any]) -> None:
        with mesh.http() as http:
            rules = {"rules": {"guardrails": guardrails}}
            http.patch(f"/mesh/v1/keys/{changing}", json=rules).raise_for_status()

    def changes() -> float:
        took_s = 0.0
        for guardrails, expected in (({"blocked_patterns": ["zebra"]}, True), ({}, False)):
            assert blocked() is not expected
            change(guardrails)
            changed_at = time.monotonic()
            mesh.wait("the change", lambda wanted=expected: blocked() is wanted, 10)
            took_s = max(took_s, time.monotonic() - changed_at)
        return took_s

    within(1.0, changes)


def test_patterns_that_cannot_be_used_are_refused(mesh: Mesh, fleet: Fleet) -> None:
    with mesh.http() as http:
        body = {
            "display_name": "bad",
            "rules": {"guardrails": {"blocked_patterns": ["fine", "(?=a)"]}},
        }
        reply = http.post("/mesh/v1/keys", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "invalid_argument")
    assert error["param"] == "rules.guardrails.blocked_patterns[1]"
    done = fleet.command("keys", "create", "bad", "--block", "(", check=False)
    assert done.returncode != 0
    assert "RE2" in done.stderr


def test_they_are_shown(mesh: Mesh, fleet: Fleet, secret: str) -> None:
    shown = fleet.command("keys", "show", key_id(mesh, "guarded")).stdout
    for text in ("500 characters", r"(?i)project\s+zebra", "secrets, email-addresses"):
        assert text in shown or "email-addresses, secrets" in shown
    listed = httpx.get(
        f"{mesh.url}/mesh/v1/keys/{key_id(mesh, 'guarded')}",
        headers={"authorization": f"Bearer {mesh.admin_key}"},
    ).json()
    assert listed["rules"]["guardrails"]["max_prompt_chars"] == "500"
