"""Other clients, unmodified: the OpenAI SDK for JavaScript, gRPC from Node, gRPC-Web, buf curl."""

import json
import struct
import subprocess

import httpx

from e2e.mesh import CHAT, EMBED, REPOSITORY, Mesh
from infermesh.inference.v1 import inference_service_pb2 as pb

BUF = REPOSITORY / "node_modules" / ".bin" / "buf"


def run(*command: str) -> str:
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_openai_javascript(mesh: Mesh) -> None:
    got = json.loads(
        run(
            *("node", "tests/clients/openai_client.mjs"),
            *(f"{mesh.url}/v1", mesh.admin_key, CHAT, EMBED),
        )
    )
    assert "Paris" in got["chat"]
    assert got["streamed"] == got["chat"]
    assert got["streamedUsage"]["total_tokens"] == got["usage"]["total_tokens"]
    assert got["chunks"] > 2
    assert got["several"] == [2, 2]
    assert got["parsed"] == ["city"]
    first, second = got["completions"]
    assert "Paris" in first
    assert second
    assert got["completed"] == first
    assert {CHAT, EMBED} <= set(got["models"])
    assert got["model"] == [CHAT, "model"]
    assert got["dimensions"] == [384, 384]
    assert got["apart"] < 1e-6
    assert got["file"] == ["file", "processed", "a", True]
    assert got["batch"] == ["completed", 1, True]
    assert (got["result"], got["deleted"]) == ("chat.completion", True)
    assert got["refused"] == {
        "model": refused("NotFoundError", 404, "model_not_found", "model"),
        "value": refused("BadRequestError", 400, "invalid_argument", "max_tokens"),
        "batch": refused("NotFoundError", 404, "not_found", "batch_id"),
        "key": refused("AuthenticationError", 401, "invalid_api_key", None),
    }


def refused(kind: str, status: int, code: str, param: str | None) -> dict[str, object]:
    return {"class": kind, "status": status, "code": code, "param": param}


def test_grpc_node(mesh: Mesh) -> None:
    got = json.loads(
        run("node", "tests/clients/grpc_client.mjs", mesh.address, mesh.admin_key, CHAT)
    )
    assert got["text"]
    assert got["tokens"] > 0
    assert got["streamed"] == got["text"]
    assert got["refused"] == 5  # NOT_FOUND


def test_buf_curl_lists_services_and_calls_one(mesh: Mesh) -> None:
    key = f"authorization: Bearer {mesh.admin_key}"
    common = ("--protocol", "grpc", "--http2-prior-knowledge", "--reflect-header", key)
    listed = run(str(BUF), "curl", *common, "--list-services", mesh.url)
    for service in (
        "infermesh.auth.v1.KeyService",
        "infermesh.registry.v1.NodeService",
        "infermesh.routing.v1.RoutingService",
        "infermesh.inference.v1.InferenceService",
        "infermesh.embeddings.v1.EmbeddingsService",
        "infermesh.metrics.v1.UsageService",
    ):
        assert service in listed
    nodes = run(
        *(str(BUF), "curl", *common, "--header", key),
        f"{mesh.url}/infermesh.registry.v1.NodeService/ListNodes",
    )
    assert "node-1" in nodes


def test_grpc_web(mesh: Mesh) -> None:
    message = pb.ChatRequest(
        model=CHAT,
        messages=[pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=[pb.ContentPart(text="Hi")])],
        max_tokens=4,
    ).SerializeToString()
    reply = httpx.post(
        f"{mesh.url}/infermesh.inference.v1.InferenceService/Chat",
        content=b"\0" + struct.pack(">I", len(message)) + message,
        headers={
            "content-type": "application/grpc-web+proto",
            "authorization": f"Bearer {mesh.admin_key}",
            "x-grpc-web": "1",
        },
        timeout=60,
    )
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("application/grpc-web")
    length = struct.unpack(">I", reply.content[1:5])[0]
    assert pb.ChatResponse.FromString(reply.content[5 : 5 + length]).model == CHAT
    assert b"grpc-status:0" in reply.content[5 + length :].replace(b" ", b"")
