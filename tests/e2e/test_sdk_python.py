"""The official OpenAI SDK for Python, unmodified, and gRPC from Python.

The SDK checks what it gets by its own types, but for two that OpenAI's own answers do not keep to
either: streamed completions, whose finish reason is null until the end, and vectors in base64.
Responses, files and batches are in test_jobs.py.
"""

import base64
import struct
from collections.abc import Iterator

import grpc
import openai
import pytest
from pydantic import BaseModel

from e2e.mesh import CHAT, EMBED, Mesh
from infermesh.embeddings.v1 import embeddings_service_pb2, embeddings_service_pb2_grpc
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.inference.v1 import inference_service_pb2_grpc
from services.kit.errors import from_rpc_error

MESSAGES = [
    {
        "role": "system",
        "content": "You are a helpful assistant. Reply in one short English sentence.",
    },
    {"role": "user", "content": "What is the capital of France?"},
]


class City(BaseModel):
    city: str


@pytest.fixture
def client(mesh: Mesh) -> Iterator[openai.OpenAI]:
    with mesh.openai(strict=True) as client:
        yield client


@pytest.fixture
def lenient(mesh: Mesh) -> Iterator[openai.OpenAI]:
    with mesh.openai() as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=CHAT, messages=MESSAGES, temperature=0, max_tokens=24
    )
    assert answer.model == CHAT
    assert answer.object == "chat.completion"
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens > 0


def test_streamed_chat_says_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=CHAT, messages=MESSAGES, temperature=0, max_tokens=24
    )
    pieces, usage, finish = [], None, None
    with client.chat.completions.create(
        model=CHAT,
        messages=MESSAGES,
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            assert chunk.model == CHAT
            if chunk.choices:
                pieces.append(chunk.choices[0].delta.content or "")
                finish = chunk.choices[0].finish_reason or finish
            usage = chunk.usage or usage
    assert "".join(pieces) == whole.choices[0].message.content
    assert finish == whole.choices[0].finish_reason
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_stream_carries_no_usage_that_was_not_asked_for(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=CHAT, messages=MESSAGES, max_tokens=4, stream=True
    ) as stream:
        assert all(chunk.usage is None and chunk.choices for chunk in stream)


def test_chats_several_answers_with_probabilities(client: openai.OpenAI) -> None:
    asked = {"model": CHAT, "messages": MESSAGES, "max_tokens": 2, "seed": 1, "stop": ["zzz"]}
    more = {"n": 2, "logprobs": True, "top_logprobs": 2, "logit_bias": {"1": -1}}
    answer = client.chat.completions.create(**asked, **more)
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert [len(token.top_logprobs) for token in choice.logprobs.content] == [2, 2]
    with client.chat.completions.create(**asked, logprobs=True, stream=True) as stream:
        chunks = [chunk.choices[0] for chunk in stream]
    assert sum(len(each.logprobs.content) for each in chunks if each.logprobs) == 2


def test_chats_that_keep_to_a_type(client: openai.OpenAI) -> None:
    asked = {"model": CHAT, "messages": MESSAGES, "temperature": 0, "max_tokens": 100}
    answer = client.chat.completions.parse(**asked, response_format=City)
    assert answer.choices[0].message.parsed.city
    with client.chat.completions.stream(**asked, response_format=City) as stream:
        assert stream.get_final_completion().choices[0].message.parsed.city


def test_completions_of_a_list_and_with_probabilities(client: openai.OpenAI) -> None:
    prompts = ["The capital of France is", "1, 2, 3,"]
    answer = client.completions.create(
        model=CHAT, prompt=prompts, temperature=0, max_tokens=4, logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert "Paris" in answer.choices[0].text
    # llama.cpp's own form, which is that of chats.
    assert len(answer.choices[0].logprobs.content) == 4


def test_completions(client: openai.OpenAI, lenient: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=CHAT, prompt="The capital of France is", temperature=0, max_tokens=5
    )
    assert "Paris" in answer.choices[0].text
    with lenient.completions.create(
        model=CHAT, prompt="The capital of France is", temperature=0, max_tokens=5, stream=True
    ) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


def test_models(client: openai.OpenAI) -> None:
    assert {CHAT, EMBED} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(CHAT).id == CHAT
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-9")
    assert error.value.code == "model_not_found"


def test_embeddings(client: openai.OpenAI, lenient: openai.OpenAI) -> None:
    texts = ["a cat sat on the mat", "a kitten lay on the rug", "quarterly tax report"]
    floats = client.embeddings.create(model=EMBED, input=texts, encoding_format="float")
    cat, kitten, tax = (item.embedding for item in floats.data)
    assert len(cat) == 384

    def similarity(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert similarity(cat, cat) == pytest.approx(1, abs=1e-3)
    assert similarity(cat, kitten) > similarity(cat, tax) + 0.2

    one = lenient.embeddings.create(model=EMBED, input=texts[0], encoding_format="base64")
    raw = base64.b64decode(one.data[0].embedding)
    assert struct.unpack("<384f", raw) == pytest.approx(cat, abs=1e-6)
    # The SDK's default asks for base64 and decodes it.
    plain = lenient.embeddings.create(model=EMBED, input=texts[0])
    assert plain.data[0].embedding == pytest.approx(cat, abs=1e-6)


def test_an_embedding_input_that_is_too_long_is_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.embeddings.create(model=EMBED, input=["short", "word " * 2000])
    assert error.value.code == "input_too_long"
    assert error.value.param == "input[1]"


def _chat(model: str = CHAT) -> pb.ChatRequest:
    return pb.ChatRequest(
        model=model,
        messages=[
            pb.ChatMessage(role=pb.CHAT_ROLE_SYSTEM, content=[pb.ContentPart(text="Be brief.")]),
            pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=[pb.ContentPart(text="Say hello.")]),
        ],
        sampling=pb.Sampling(temperature=0),
        max_tokens=8,
    )


def test_typed_grpc(mesh: Mesh) -> None:
    metadata = (("authorization", f"Bearer {mesh.admin_key}"),)
    with grpc.insecure_channel(mesh.address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        answer = stub.Chat(_chat(), metadata=metadata, timeout=60)
        text = "".join(part.text for part in answer.choices[0].message.content)
        assert answer.model == CHAT
        assert answer.usage.completion_tokens > 0
        replies = list(
            stub.StreamChat(pb.StreamChatRequest(chat=_chat()), metadata=metadata, timeout=60)
        )
        assert "".join(d.content for r in replies for d in r.deltas) == text
        assert replies[-1].usage.completion_tokens == answer.usage.completion_tokens
        vectors = embeddings_service_pb2_grpc.EmbeddingsServiceStub(channel).Embed(
            embeddings_service_pb2.EmbedRequest(model=EMBED, inputs=["a", "b"]),
            metadata=metadata,
            timeout=60,
        )
        assert [len(e.values) for e in vectors.embeddings] == [384, 384]


@pytest.mark.parametrize(
    ("metadata", "request_", "code", "reason"),
    [
        ((), _chat(), grpc.StatusCode.UNAUTHENTICATED, "INVALID_API_KEY"),
        ("key", _chat("gpt-9"), grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
        ("key", pb.ChatRequest(model=CHAT), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ("key", pb.ChatRequest(), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
    ],
)
def test_typed_grpc_errors(mesh: Mesh, metadata, request_, code, reason) -> None:
    if metadata == "key":
        metadata = (("authorization", f"Bearer {mesh.admin_key}"),)
    with grpc.insecure_channel(mesh.address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            stub.Chat(request_, metadata=metadata, timeout=20)
    assert error.value.code() == code
    assert from_rpc_error(error.value).reason_name == reason
