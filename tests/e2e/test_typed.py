"""The typed API through the real mesh: gRPC, gRPC-Web and the REST forms that stand beside it."""

import re
import struct
import time
from typing import Any

import grpc
import httpx
import pytest

from e2e.fleet import Fleet
from e2e.mesh import BASE_PORT, CHAT, EMBED, Mesh
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.inference.v1 import inference_service_pb2_grpc

ENGINES = (BASE_PORT + 41, BASE_PORT + 42)
SERVICE = "/infermesh.inference.v1.InferenceService"
PIECE = pb.ContentPart(text="Say hi.")
CHATS = pb.ChatRequest(
    model=CHAT, messages=[pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=[PIECE])], max_tokens=4
)
SHORT = pb.CompleteRequest(model=CHAT, prompts=["a"], max_tokens=2)
LONG = pb.CompleteRequest(model=CHAT, prompts=["Once upon a time"], max_tokens=4000)
LONG.engine_options.update({"ignore_eos": True})


@pytest.fixture
def stub(mesh: Mesh):
    with grpc.insecure_channel(mesh.address) as channel:
        yield inference_service_pb2_grpc.InferenceServiceStub(channel)


@pytest.fixture
def key(mesh: Mesh) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {mesh.admin_key}"),)


def running() -> int:
    total = 0
    for port in ENGINES:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
        total += int(float(re.search(r"^llamacpp:requests_processing (\S+)", text, re.M)[1]))
    return total


def test_completions(stub: Any, key: Any) -> None:
    request = pb.CompleteRequest(
        model=CHAT,
        prompts=["The capital of France is", "One two three"],
        max_tokens=4,
        logprobs=2,
        sampling=pb.Sampling(temperature=0),
    )
    whole = stub.Complete(request, metadata=key, timeout=60)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert "Paris" in whole.choices[0].text
    assert whole.choices[0].finish_reason == pb.FINISH_REASON_LENGTH
    assert whole.usage.completion_tokens == 8
    assert len(whole.choices[0].logprobs.content) == 4
    assert all(len(token.top_logprobs) == 2 for token in whole.choices[0].logprobs.content)
    request = pb.CompleteRequest(
        model=CHAT, prompts=list(request.prompts), max_tokens=4, sampling=request.sampling
    )
    messages = list(stub.StreamComplete(request, metadata=key, timeout=60))
    for index in (0, 1):
        text = "".join(p.text for m in messages for p in m.pieces if p.index == index)
        assert text == whole.choices[index].text
    assert messages[-1].usage.completion_tokens == 8
    assert len(messages) > 3


def test_likelihoods_and_fields_of_chats(stub: Any, key: Any) -> None:
    request = pb.ChatRequest()
    request.CopyFrom(CHATS)
    request.logprobs = True
    request.top_logprobs = 2
    request.ClearField("max_tokens")
    request.max_completion_tokens = 3
    answer = stub.Chat(request, metadata=key, timeout=60)
    assert answer.usage.completion_tokens <= 3
    assert all(len(token.top_logprobs) == 2 for token in answer.choices[0].logprobs.content)
    assert answer.create_time.seconds
    messages = list(stub.StreamChat(pb.StreamChatRequest(chat=request), metadata=key, timeout=60))
    told = [t for m in messages for d in m.deltas for t in d.logprobs.content]
    assert told


def test_tokens(stub: Any, key: Any, mesh: Mesh) -> None:
    cut = stub.Tokenize(
        pb.TokenizeRequest(model=CHAT, text="héllo you", return_token_texts=True), metadata=key
    )
    assert "".join(cut.token_texts) == "héllo you"
    back = stub.Detokenize(pb.DetokenizeRequest(model=CHAT, tokens=cut.tokens), metadata=key)
    assert back.text == "héllo you"
    counted = stub.CountTokens(pb.CountTokensRequest(chat=CHATS), metadata=key)
    assert counted.prompt_tokens == stub.Chat(CHATS, metadata=key).usage.prompt_tokens
    with mesh.http() as rest:
        said = rest.post("/tokenize", json={"model": CHAT, "prompt": "héllo you"}).json()
        assert said["tokens"] == list(cut.tokens)
        text = rest.post("/detokenize", json={"model": CHAT, "tokens": said["tokens"]}).json()
        assert text["prompt"] == "héllo you"
        chat = {"model": CHAT, "messages": [{"role": "user", "content": "Say hi."}]}
        assert rest.post("/tokenize", json=chat).json()["count"] == counted.prompt_tokens
        bad = rest.post("/detokenize", json={"model": CHAT, "tokens": [10**9]})
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "tokens[0]")
        unknown = rest.post("/tokenize", json={"model": "nope", "prompt": "a"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        nameless = rest.post("/tokenize", json={"prompt": "a"})
        assert (nameless.status_code, nameless.json()["error"]["param"]) == (400, "model")


def test_what_no_engine_ranks(stub: Any, key: Any, mesh: Mesh) -> None:
    request = pb.RerankRequest(model=CHAT, query="q", documents=["d"])
    with pytest.raises(grpc.RpcError) as caught:
        stub.Rerank(request, metadata=key, timeout=30)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with mesh.http() as rest:
        for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
            asked = {"model": CHAT, "query": "q", "documents": ["d"]}
            answer = rest.post(path, json=asked)
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["code"] == "unsupported"


def test_documents_are_ranked(fleet: Fleet, stub: Any, key: Any, mesh: Mesh) -> None:
    (engine,) = fleet.engines(1, "ranker", "--embeddings")
    fleet.join({"rank-sim": ("--engine", "sim", "--url", engine)})
    documents = ["a cow eats grass", "mars is red"]
    request = pb.RerankRequest(
        model="ranker", query="red mars", documents=documents, return_documents=True
    )
    typed = stub.Rerank(request, metadata=key, timeout=30)
    assert [result.document for result in typed.results] == documents[::-1]
    asked = {"model": "ranker", "query": "red mars", "documents": documents, "top_n": 1}
    with mesh.http() as rest:
        for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
            said = rest.post(path, json=asked).raise_for_status()
            (best,) = said.json()["results"]
            assert (best["index"], said.headers["x-mesh-node"]) == (1, "rank-sim")

        def accounted() -> list[dict[str, Any]]:
            page = rest.get("/mesh/v1/usage/events", params={"page_size": 20})
            events = page.raise_for_status().json()["events"]
            events = [e for e in events if e["model"] == "ranker"]
            assert {e["operation"] for e in events} <= {"OPERATION_RERANK"}
            return events

        events = mesh.wait("the ledger", lambda: len(accounted()) == 4 and accounted())
    assert {int(event["prompt_tokens"]) for event in events} == {typed.usage.prompt_tokens}
    assert {event["completion_tokens"] for event in events} == {0}
    web = web_call(mesh, "Rerank", request)
    assert pb.RerankResponse.FromString(web).results[0].index == 1


def test_vectors(stub: Any, key: Any) -> None:
    ids = stub.Tokenize(pb.TokenizeRequest(model=EMBED, text="hello you"), metadata=key).tokens
    request = pb.EmbedRequest(model=EMBED, token_inputs=[pb.TokenIds(ids=ids)])
    by_tokens = stub.Embed(request, metadata=key, timeout=30).embeddings[0]
    request = pb.EmbedRequest(model=EMBED, inputs=["hello you"])
    by_text = stub.Embed(request, metadata=key, timeout=30).embeddings[0]
    assert len(by_tokens.values) == len(by_text.values) == 384


@pytest.mark.parametrize(
    ("name", "request_", "reply"),
    [
        ("Complete", SHORT, pb.CompleteResponse),
        ("StreamComplete", SHORT, pb.StreamCompleteResponse),
        ("CountTokens", pb.CountTokensRequest(chat=CHATS), pb.CountTokensResponse),
        ("Tokenize", pb.TokenizeRequest(model=CHAT, text="a"), pb.TokenizeResponse),
        ("Detokenize", pb.DetokenizeRequest(model=CHAT, tokens=[5]), pb.DetokenizeResponse),
    ],
)
def test_grpc_web(mesh: Mesh, name: str, request_: Any, reply: Any) -> None:
    assert reply.FromString(web_call(mesh, name, request_)).model == CHAT


def web_answer(mesh: Mesh, name: str, request: Any, **more: str) -> httpx.Response:
    """Returns an answer by gRPC-Web.

    Args:
        more: Further headers, with `_` for `-`.
    """
    message = request.SerializeToString()
    answer = httpx.post(
        f"{mesh.url}{SERVICE}/{name}",
        content=b"\0" + struct.pack(">I", len(message)) + message,
        headers={
            "content-type": "application/grpc-web+proto",
            "authorization": f"Bearer {mesh.admin_key}",
            "x-grpc-web": "1",
            **{name.replace("_", "-"): value for name, value in more.items()},
        },
        timeout=60,
    )
    assert answer.status_code == 200
    return answer


def web_call(mesh: Mesh, name: str, request: Any) -> bytes:
    """Returns the first message of an answer by gRPC-Web."""
    content = web_answer(mesh, name, request).content
    length = struct.unpack(">I", content[1:5])[0]
    assert b"grpc-status:0" in content.replace(b" ", b"")
    return content[5 : 5 + length]


@pytest.mark.parametrize("name", ["Complete", "StreamComplete"])
def test_a_deadline_ends_a_call_whose_caller_only_waits(mesh: Mesh, name: str) -> None:
    began = time.monotonic()
    answer = web_answer(mesh, name, LONG, grpc_timeout="700m")
    assert 0.6 < time.monotonic() - began < 10
    begun = b"grpc-status:4" in answer.content.replace(b" ", b"")
    assert begun if name == "StreamComplete" else answer.headers["grpc-status"] == "4"


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
@pytest.mark.parametrize("name", ["Complete", "StreamComplete"])
def test_the_end_of_a_call_stops_the_engine(
    mesh: Mesh, stub: Any, key: Any, how: str, name: str
) -> None:
    mesh.wait("idle engines", lambda: running() == 0)
    timeout_s = 3.0 if how == "deadline" else None
    method = getattr(stub, name)
    if name == "Complete":
        call = method.future(LONG, metadata=key, timeout=timeout_s)
    else:
        call = method(LONG, metadata=key, timeout=timeout_s)
    mesh.wait("a running request", lambda: running() == 1)
    if how == "cancelled":
        call.cancel()
    else:
        with pytest.raises(grpc.RpcError) as caught:
            call.result() if name == "Complete" else list(call)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    began = time.monotonic()
    mesh.wait("idle engines", lambda: running() == 0, 10.0)
    print(f"{name} {how}: engine idle {1000 * (time.monotonic() - began):.0f} ms after the end")
