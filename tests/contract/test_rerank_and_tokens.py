"""Rankings, tokens and vectors that are cut, typed and by REST, over a running node."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inference_node import (
    MODEL,
    FakeEngine,
    FakeMesh,
    Node,
    caller,
    refusal,
    running,
    typed_chat,
    until,
)
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2
from infermesh.registry.v1 import resources_pb2
from rest_calls import GUARDED, http, refused
from services.inference.simulator.options import EngineOptions
from services.inference.simulator.server import serving
from services.kit import headers
from support import free_port

ranks = pytest.mark.parametrize("simulated", [True], indirect=True)
answers = pytest.mark.parametrize("simulated", [False], indirect=True)
DOCUMENTS = ["a cow eats grass", "mars is red", "red grass on mars"]


@pytest.fixture
async def simulated(mesh: FakeMesh, tmp_path: Path, request: Any) -> AsyncIterator[Node]:
    options = EngineOptions(embeds=request.param)
    port = free_port()
    async with (
        serving("127.0.0.1", [port], options),
        running(port, mesh.address, tmp_path, engine="sim") as node,
    ):
        await until(node.is_serving)
        yield node


@ranks
async def test_documents_are_ranked(simulated: Node, mesh: FakeMesh) -> None:
    request = pb.RerankRequest(
        model="sim", query="red mars", documents=DOCUMENTS, return_documents=True
    )
    response = await simulated.typed.Rerank(request, metadata=caller_of_sim("r"))
    assert [(r.index, r.relevance_score, r.document) for r in response.results] == [
        (1, 1.0, DOCUMENTS[1]),
        (2, 1.0, DOCUMENTS[2]),
        (0, 0.0, DOCUMENTS[0]),
    ]
    assert response.model == "sim"
    await until(lambda: mesh.events)
    (event,) = mesh.events
    assert event.operation == usage_pb2.OPERATION_RERANK
    assert event.prompt_tokens == response.usage.prompt_tokens > 0
    assert event.completion_tokens == 0
    request = pb.RerankRequest(model="sim", query="red mars", documents=DOCUMENTS, top_n=1)
    assert resources_pb2.CAPABILITY_RERANK in mesh.joins[0].models[0].capabilities
    (best,) = (await simulated.typed.Rerank(request)).results
    assert (best.index, best.HasField("document")) == (1, False)


@ranks
async def test_documents_are_ranked_by_rest(simulated: Node) -> None:
    rerank = simulated.openai.CreateRerank
    said = await http(
        rerank,
        model="sim",
        query="red mars",
        documents=[DOCUMENTS[0], {"text": DOCUMENTS[1]}],
        top_n=2**62,
        return_documents=True,
        priority="low",
    )
    assert [(r["index"], r["document"]["text"]) for r in said["results"]] == [
        (1, DOCUMENTS[1]),
        (0, DOCUMENTS[0]),
    ]
    assert said["usage"]["total_tokens"] > 0
    assert (said["model"], said["object"]) == ("sim", "list")
    plain = await http(rerank, model="sim", query="red", documents=DOCUMENTS)
    assert all("document" not in result for result in plain["results"])


@ranks
@pytest.mark.parametrize(
    ("fields", "refusal_of"),
    [
        ({"model": 1}, ("INVALID_ARGUMENT", "model")),
        ({"query": ""}, ("INVALID_ARGUMENT", "query")),
        ({"documents": []}, ("INVALID_ARGUMENT", "documents")),
        ({"documents": ["a", ""]}, ("INVALID_ARGUMENT", "documents[1]")),
        ({"documents": [{"image": "x"}]}, ("UNSUPPORTED", "documents[0]")),
        ({"documents": ["a"] * 2049}, ("INVALID_ARGUMENT", "documents")),
        ({"top_n": 0}, ("INVALID_ARGUMENT", "top_n")),
        ({"top_n": True}, ("INVALID_ARGUMENT", "top_n")),
        ({"return_documents": 1}, ("INVALID_ARGUMENT", "return_documents")),
        ({"priority": 7}, ("INVALID_ARGUMENT", "priority")),
        ({"model": "other"}, ("MODEL_NOT_FOUND", "model")),
    ],
)
async def test_bad_rankings(simulated: Node, fields: dict, refusal_of: tuple) -> None:
    asked = {"model": "sim", "query": "q", "documents": ["d"], **fields}
    assert await refused(simulated.openai.CreateRerank, **asked) == refusal_of


@answers
async def test_tokens_there_and_back(simulated: Node, mesh: FakeMesh) -> None:
    typed = simulated.typed
    cut = await typed.Tokenize(
        pb.TokenizeRequest(model="sim", text="hello you", return_token_texts=True),
        metadata=caller_of_sim("t"),
    )
    assert list(cut.token_texts) == ["hell", "o yo", "u"]
    assert (cut.model, cut.context_length, len(cut.tokens)) == ("sim", 131072, 3)
    back = await typed.Detokenize(pb.DetokenizeRequest(model="sim", tokens=cut.tokens))
    assert (back.model, back.text) == ("sim", "hello you")
    said = await http(simulated.openai.Tokenize, model="sim", prompt="hello you")
    assert (said["tokens"], said["count"]) == (list(cut.tokens), 3)
    assert (said["max_model_len"], said["token_strs"]) == (131072, None)
    chat = await http(
        simulated.openai.Tokenize,
        model="sim",
        messages=[{"role": "user", "content": "hi"}],
        return_token_strs=True,
    )
    assert "".join(chat["token_strs"]) == "<|user|>hi<|assistant|>"
    text = await http(simulated.openai.Detokenize, model="sim", tokens=said["tokens"])
    assert text["prompt"] == "hello you"
    asked = pb.CountTokensRequest(chat=typed_chat("hi"))
    asked.chat.model = "sim"
    assert (await typed.CountTokens(asked)).prompt_tokens == chat["count"]
    # Nothing of it counts as used: of the first nobody had reserved anything.
    reserved = (*caller_of_sim("s"), (headers.RESERVED, "1"))
    await typed.Tokenize(pb.TokenizeRequest(model="sim", text="hello"), metadata=reserved)
    await until(lambda: mesh.events)
    (event,) = mesh.events
    assert (event.request_id, event.operation) == ("s", usage_pb2.OPERATION_TOKENIZE)
    assert (event.prompt_tokens, event.completion_tokens) == (0, 0)


@answers
@pytest.mark.parametrize(
    ("name", "fields", "refusal_of"),
    [
        ("Tokenize", {"model": ""}, ("INVALID_ARGUMENT", "model")),
        ("Tokenize", {}, ("INVALID_ARGUMENT", "prompt")),
        ("Tokenize", {"prompt": ["a"]}, ("INVALID_ARGUMENT", "prompt")),
        ("Tokenize", {"prompt": "a", "messages": [{"role": "u"}]}, ("INVALID_ARGUMENT", "prompt")),
        ("Tokenize", {"messages": []}, ("INVALID_ARGUMENT", "messages")),
        ("Tokenize", {"prompt": "a", "top_p": 1}, ("UNSUPPORTED", "top_p")),
        (
            "Tokenize",
            {"prompt": "a", "add_special_tokens": 1},
            ("INVALID_ARGUMENT", "add_special_tokens"),
        ),
        ("Detokenize", {"tokens": "a"}, ("INVALID_ARGUMENT", "tokens")),
        ("Detokenize", {"tokens": [1, -1]}, ("INVALID_ARGUMENT", "tokens[1]")),
        ("Detokenize", {"tokens": [1.5]}, ("INVALID_ARGUMENT", "tokens[0]")),
        ("Detokenize", {"tokens": [1], "x": 1}, ("UNSUPPORTED", "x")),
        ("Detokenize", {"tokens": [2**31 - 1]}, None),
        ("Detokenize", {"tokens": [2**31]}, ("INVALID_ARGUMENT", "tokens[0]")),
    ],
)
async def test_bad_tokens(
    simulated: Node, name: str, fields: dict, refusal_of: tuple | None
) -> None:
    call = getattr(simulated.openai, name)
    asked = {"model": "sim", **fields}
    if refusal_of is None:
        assert await http(call, **asked)
    else:
        assert await refused(call, **asked) == refusal_of


async def test_vectors_of_tokens_and_of_another_length(embedder: Node, engine: FakeEngine) -> None:
    ids = [pb.TokenIds(ids=[1, 2])]
    both = pb.EmbedRequest(model=MODEL, inputs=["a"], token_inputs=ids)
    assert (await refusal(embedder.typed.Embed(both)))[0] == "INVALID_ARGUMENT"
    guarded = pb.EmbedRequest(model=MODEL, token_inputs=ids)
    call = embedder.typed.Embed(guarded, metadata=GUARDED)
    assert await refusal(call) == ("UNSUPPORTED", "token_inputs")
    # llama.cpp would return them whole.
    cut = pb.EmbedRequest(model=MODEL, inputs=["a"], dimensions=1)
    assert await refusal(embedder.typed.Embed(cut)) == ("UNSUPPORTED", "dimensions")


@ranks
async def test_vectors_that_an_engine_does_not_cut_are_refused(simulated: Node) -> None:
    whole = await simulated.typed.Embed(pb.EmbedRequest(model="sim", inputs=["a"]))
    length = len(whole.embeddings[0].values)
    same = pb.EmbedRequest(model="sim", inputs=["a"], dimensions=length)
    assert len((await simulated.typed.Embed(same)).embeddings[0].values) == length
    cut = pb.EmbedRequest(model="sim", inputs=["a"], dimensions=length - 1)
    assert (await refusal(simulated.typed.Embed(cut)))[0] == "ENGINE_REJECTED"


def caller_of_sim(request_id: str) -> tuple[tuple[str, str], ...]:
    return tuple((k, "sim" if v == MODEL else v) for k, v in caller(request_id))
