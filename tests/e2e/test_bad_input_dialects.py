"""Bad input in every dialect: its own shape, the right status, and the field at fault."""

import json
from typing import Any

import grpc
import httpx
import pytest

from e2e.mesh import CHAT, EMBED, Mesh
from infermesh.embeddings.v1 import embeddings_service_pb2, embeddings_service_pb2_grpc
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.inference.v1 import inference_service_pb2_grpc
from services.kit.errors import from_rpc_error

HI = [{"role": "user", "content": "Hi"}]
PICTURE = {"type": "image_url", "image_url": {"url": "data:,"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
TOOL = {"type": "function", "function": {"name": "f"}}
# Paths that take JSON, with a body that is fine.
FINE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": CHAT, "messages": HI, "max_tokens": 1},
    "/v1/completions": {"model": CHAT, "prompt": "Hi", "max_tokens": 1},
    "/v1/embeddings": {"model": EMBED, "input": "Hi"},
    "/v1/responses": {"model": CHAT, "input": "Hi", "max_output_tokens": 1},
    "/v1/batches": {
        "input_file_id": "file-0",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    },
    "/v1/rerank": {"model": CHAT, "query": "q", "documents": ["d"]},
    "/tokenize": {"model": CHAT, "prompt": "Hi"},
    "/detokenize": {"model": CHAT, "tokens": [1]},
    "/v1/messages": {"model": CHAT, "messages": HI, "max_tokens": 1},
    "/v1/messages/count_tokens": {"model": CHAT, "messages": HI},
    "/api/chat": {"model": CHAT, "messages": HI, "options": {"num_predict": 1}},
    "/api/generate": {"model": CHAT, "prompt": "Hi", "options": {"num_predict": 1}},
    "/api/embed": {"model": EMBED, "input": "Hi"},
    "/api/embeddings": {"model": EMBED, "prompt": "Hi"},
}


def told(reply: httpx.Response) -> tuple[int, str | None, str]:
    """Returns status, `param` and message of a refusal, whose form is its dialect's."""
    assert reply.headers["content-type"].startswith("application/json"), reply.text
    said, path = reply.json(), reply.request.url.path
    if path.startswith("/api/"):
        assert said.keys() == {"error"}, said
        return reply.status_code, None, said["error"]
    error = said["error"]
    if path.startswith("/v1/messages"):
        assert said.keys() == {"type", "error", "request_id"}, said
        assert said["type"] == "error"
        assert error.keys() - {"param"} == {"type", "message"}
    else:
        assert said.keys() == {"error"}, said
        assert error.keys() == {"message", "type", "param", "code"}
    return reply.status_code, error.get("param"), error["message"]


def refused(mesh: Mesh, path: str, content: bytes) -> tuple[int, str | None, str]:
    with mesh.http() as http:
        return told(http.post(path, content=content, headers={"content-type": "application/json"}))


@pytest.mark.parametrize("path", FINE)
def test_what_is_no_object(mesh: Mesh, path: str) -> None:
    fine = json.dumps(FINE[path]).encode()
    for content in (b"", b"{", b"[]", b'"x"', b"\0", fine[:-1], fine + b"}", b'{"model":"\xff"}'):
        status, _, message = refused(mesh, path, content)
        assert status == 400, (content, message)
        assert message
    deep = b"[" * 10_000 + b"]" * 10_000
    assert refused(mesh, path, fine[:-1] + b',"x":' + deep + b"}")[0] == 400


@pytest.mark.parametrize("path", [each for each in FINE if each != "/v1/batches"])
def test_models(mesh: Mesh, path: str) -> None:
    for model, status in (("gpt-9", 404), ("", 400), (7, 400), (None, 400), ([CHAT], 400)):
        got, param, message = refused(
            mesh, path, json.dumps({**FINE[path], "model": model}).encode()
        )
        assert got == status, (model, message)
        assert param == ("model" if not path.startswith("/api/") else None), model


CHATS = "/v1/chat/completions"
TEXTS = "/v1/completions"
MESSAGES = "/v1/messages"


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        (CHATS, {"messages": HI * 4097}, "messages"),
        (CHATS, {"messages": [{"role": "user", "content": [PICTURE] * 129}]}, "messages"),
        (CHATS, {"messages": [{"role": "user", "content": [PICTURE]}]}, "messages[0].content[0]"),
        (CHATS, {"messages": [{"role": "user", "content": [SOUND]}]}, "messages[0].content[0]"),
        (CHATS, {"functions": [{"name": "f"}]}, "functions"),
        (CHATS, {"tools": "f"}, "tools"),
        (CHATS, {"tools": [TOOL] * 129}, "tools"),
        (CHATS, {"max_tokens": -1}, "max_tokens"),
        (CHATS, {"max_completion_tokens": "many"}, "max_completion_tokens"),
        (CHATS, {"n": 1.5}, "n"),
        (CHATS, {"stream_options": "yes"}, "stream_options"),
        (CHATS, {"priority": "first"}, "priority"),
        (CHATS, {"fallback_models": ["m"] * 9}, "fallback_models"),
        (CHATS, {"fallback_models": ["m", 7]}, "fallback_models[1]"),
        (CHATS, {"session_id": "s" * 201}, "session_id"),
        (CHATS, {"enable_caching": "yes"}, "enable_caching"),
        (TEXTS, {"prompt": 7}, "prompt"),
        (TEXTS, {"prompt": []}, "prompt"),
        (TEXTS, {"prompt": ["a"] * 129}, "prompt"),
        (TEXTS, {"n": -1}, "n"),
        (TEXTS, {"suffix": "."}, "suffix"),
        (TEXTS, {"echo": True}, "echo"),
        ("/v1/embeddings", {"input": 7}, "input"),
        ("/v1/embeddings", {"input": ["a", 7]}, "input[1]"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input"),
        ("/v1/embeddings", {"input": [1, -1]}, "input"),
        ("/v1/embeddings", {"encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"dimensions": 3}, "dimensions"),
        ("/v1/embeddings", {"model": CHAT}, "model"),
        ("/v1/responses", {"input": []}, "input"),
        ("/v1/responses", {"input": [{"role": "user", "content": "a"}] * 4097}, "input"),
        ("/v1/responses", {"tools": [{"type": "function", "name": "f"}] * 129}, "tools"),
        ("/v1/responses", {"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ("/v1/responses", {"max_output_tokens": 0}, "max_output_tokens"),
        ("/v1/responses", {"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ("/v1/responses", {"truncation": "auto"}, "truncation"),
        ("/v1/batches", {"input_file_id": ""}, "input_file_id"),
        ("/v1/batches", {"endpoint": "/v1/rerank"}, "endpoint"),
        ("/v1/batches", {"completion_window": "1h"}, "completion_window"),
        ("/v1/batches", {"metadata": "a"}, "metadata"),
        ("/v1/rerank", {"query": ""}, "query"),
        ("/v1/rerank", {"documents": []}, "documents"),
        ("/v1/rerank", {"documents": ["d"] * 2049}, "documents"),
        ("/v1/rerank", {"documents": ["d", 7]}, "documents[1]"),
        ("/v1/rerank", {"top_n": 0}, "top_n"),
        ("/v1/rerank", {}, "model"),  # it ranks nothing
        ("/tokenize", {"prompt": 7}, "prompt"),
        ("/tokenize", {"messages": HI}, "prompt"),
        ("/tokenize", {"add_special_tokens": 7}, "add_special_tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        (MESSAGES, {"messages": []}, "messages"),
        (MESSAGES, {"messages": HI * 4097}, "messages"),
        (MESSAGES, {"messages": [{"role": "x", "content": "a"}]}, "messages[0].role"),
        (MESSAGES, {"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        (MESSAGES, {"max_tokens": 0}, "max_tokens"),
        (MESSAGES, {"temperature": 2}, "temperature"),
        (MESSAGES, {"stop_sequences": [7]}, "stop_sequences[0]"),
        (MESSAGES, {"tools": [{"name": "f", "input_schema": {}}] * 129}, "tools"),
        (MESSAGES, {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
        (MESSAGES, {"stream": "yes"}, "stream"),
        (MESSAGES, {"cache": True}, "cache"),
        ("/v1/messages/count_tokens", {"messages": "a"}, "messages"),
        ("/v1/messages/count_tokens", {"max_tokens": 7}, "max_tokens"),
        ("/api/chat", {"messages": HI * 4097}, "messages"),
        ("/api/chat", {"messages": [{"role": "x", "content": "a"}]}, "messages[0].role"),
        ("/api/chat", {"messages": [{**HI[0], "images": ["?"]}]}, "messages[0].images[0]"),
        ("/api/chat", {"tools": [TOOL] * 129}, "tools"),
        ("/api/chat", {"options": {"num_ctx": 10_000_000}}, "num_ctx"),
        ("/api/chat", {"options": 7}, "options"),
        ("/api/chat", {"think": "hard"}, "think"),
        ("/api/generate", {"prompt": 7}, "prompt"),
        ("/api/generate", {"template": "x"}, "template"),
        ("/api/generate", {"stream": "yes"}, "stream"),
        ("/api/embed", {"input": ["a", ""]}, "input[1]"),
        ("/api/embed", {"input": ["a"] * 2049}, "input"),
        ("/api/embed", {"dimensions": -1}, "dimensions"),
        ("/api/embeddings", {"prompt": ["a"]}, "prompt"),
    ],
)
def test_fields(mesh: Mesh, path: str, change: dict[str, Any], param: str) -> None:
    status, said, message = refused(mesh, path, json.dumps({**FINE[path], **change}).encode())
    assert status == 400, message
    # Ollama's form has no word for the field, so that it stands in the message.
    assert param in message if path.startswith("/api/") else said == param


@pytest.mark.parametrize(
    ("form", "status", "param"),
    [
        ({"data": {"purpose": "batch"}}, 400, "file"),
        ({"data": {}, "files": {"file": b"{}"}}, 400, "purpose"),
        ({"data": {"purpose": "fine-tune"}, "files": {"file": b"{}"}}, 400, "purpose"),
        ({"data": {"purpose": "batch"}, "files": {"other": b"{}"}}, 400, "file"),
        ({"json": {"purpose": "batch"}}, 400, "file"),
    ],
)
def test_files(mesh: Mesh, form: dict[str, Any], status: int, param: str | None) -> None:
    with mesh.http() as http:
        got = told(http.post("/v1/files", **form))
        assert got[:2] == (status, param), got
        missing = [http.get(f"/v1/files/{name}") for name in ("file-0", "file-0/content")]
        missing += [http.delete("/v1/files/file-0"), http.get("/v1/batches/batch_0")]
        missing.append(http.get("/v1/responses/resp_0"))
        assert [told(reply)[0] for reply in missing] == [404] * 5


def chat(**fields: Any) -> pb.ChatRequest:
    hi = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=[pb.ContentPart(text="Hi")])
    return pb.ChatRequest(**{"model": CHAT, "messages": [hi], **fields})


@pytest.mark.parametrize(
    ("method", "request_", "param"),
    [
        ("Chat", chat(messages=[]), "messages"),
        ("Chat", chat(messages=[*chat().messages] * 4097), "messages"),
        ("Chat", chat(tools=[pb.Tool()] * 129), "tools"),
        ("Chat", chat(sampling=pb.Sampling(temperature=9)), "sampling.temperature"),
        ("Chat", chat(n=129), "n"),
        ("Chat", chat(model=EMBED), "model"),
        ("StreamChat", pb.StreamChatRequest(), "model"),
        ("Complete", pb.CompleteRequest(model=CHAT), "prompts"),
        ("Complete", pb.CompleteRequest(model=CHAT, prompts=["a"] * 129), "prompts"),
        ("Rerank", pb.RerankRequest(model=CHAT, query="q"), "documents"),
        ("Rerank", pb.RerankRequest(model=CHAT, query="q", documents=["d"] * 2049), "documents"),
        ("Detokenize", pb.DetokenizeRequest(model=CHAT, tokens=[-1]), "tokens[0]"),
        ("CountTokens", pb.CountTokensRequest(chat=chat(messages=[])), "chat.messages"),
    ],
)
def test_typed(mesh: Mesh, method: str, request_: Any, param: str) -> None:
    with grpc.insecure_channel(mesh.address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        error = _typed_refusal(mesh, getattr(stub, method), request_)
    assert error.param == param, error.message


def test_typed_vectors(mesh: Mesh) -> None:
    with grpc.insecure_channel(mesh.address) as channel:
        stub = embeddings_service_pb2_grpc.EmbeddingsServiceStub(channel)
        many = embeddings_service_pb2.EmbedRequest(model=EMBED, inputs=["a"] * 2049)
        assert _typed_refusal(mesh, stub.Embed, many).param == "inputs"


def _typed_refusal(mesh: Mesh, call: Any, request: Any) -> Any:
    metadata = (("authorization", f"Bearer {mesh.admin_key}"),)
    with pytest.raises(grpc.RpcError) as caught:
        answer = call(request, metadata=metadata, timeout=20)
        list(answer)  # a stream
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    return from_rpc_error(caught.value)
