"""Answers to questions in other words, over a running node and a scripted embeddings service."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import orjson
import pytest

from inference_node import (
    DONE,
    HELLO,
    LAST,
    MODEL,
    FakeEngine,
    FakeMesh,
    Node,
    Reply,
    caller,
    running,
    text_of,
    typed_chat,
    until,
)
from infermesh.embeddings.v1 import embeddings_service_pb2 as embeddings_pb
from infermesh.embeddings.v1 import embeddings_service_pb2_grpc
from infermesh.errors.v1 import errors_pb2
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.metrics.v1 import usage_service_pb2_grpc
from infermesh.registry.v1 import node_service_pb2_grpc
from services.kit.errors import MeshError
from services.kit.guard import guarded

ONE, NEAR, FAR = "Name three colours.", "Please name three colours", "Name three animals."
NEARER_TO_NEAR = "Please name three nice colours"
# The cosine of ONE and NEAR is 0.970.
VECTORS = {
    ONE: (1.0, 0.0),
    NEAR: (1.0, 0.25),
    NEARER_TO_NEAR: (1.0, 0.5),
    FAR: (0.0, 1.0),
    "Do not.": (1.0, 0.01),
}


class FakeEmbeddings(embeddings_service_pb2_grpc.EmbeddingsServiceServicer):
    """Stands for the front door and the embeddings service behind it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.keys: set[str] = set()
        self.fails_with: Exception | None = None
        self.delay_s = 0.0

    async def Embed(self, request, context):  # noqa: N802
        assert request.model == "vectors"
        self.texts += request.inputs
        self.keys.add(dict(context.invocation_metadata())["authorization"])
        await asyncio.sleep(self.delay_s)
        if self.fails_with:
            raise self.fails_with
        embedding = embeddings_pb.Embedding(values=VECTORS[request.inputs[0]])
        return embeddings_pb.EmbedResponse(embeddings=[embedding])


@pytest.fixture
def embeddings() -> FakeEmbeddings:
    return FakeEmbeddings()


@pytest.fixture
async def mesh(embeddings: FakeEmbeddings) -> AsyncIterator[FakeMesh]:
    fake = FakeMesh()
    server = grpc.aio.server()
    node_service_pb2_grpc.add_NodeServiceServicer_to_server(fake, server)
    usage_service_pb2_grpc.add_UsageServiceServicer_to_server(fake, server)
    embeddings_service_pb2_grpc.add_EmbeddingsServiceServicer_to_server(embeddings, guarded(server))
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield fake
    await server.stop(0)


@pytest.fixture
async def node(engine: FakeEngine, mesh: FakeMesh, tmp_path: Path) -> AsyncIterator[Node]:
    async with running(
        engine.port,
        mesh.address,
        tmp_path,
        semantic_cache_models="m",
        semantic_cache_embedding_model="vectors",
        semantic_cache_threshold=0.96,
        semantic_cache_timeout_ms=1500,
    ) as node:
        await until(node.is_serving)
        yield node


Asked = tuple[bytes, str | None, str | None]


async def ask(node: Node, text: str, tenant: str = "t", **fields: object) -> Asked:
    """Returns an answer, and what its headers say of the cache and of how near it is."""
    metadata = tuple((dict(caller("r")) | {"x-mesh-tenant": tenant}).items())
    messages = [{"role": "user", "content": text}]
    request = {"enable_caching": True, "messages": messages, **fields}
    call = node.chat(metadata=metadata, **request)
    body = text_of([message async for message in call])
    said = dict(await call.initial_metadata())
    return body, said.get("x-mesh-cache"), said.get("x-mesh-cache-similarity")


def echoing(engine: FakeEngine) -> Callable[[], list[str]]:
    """Has the engine give back what it is asked; returns what it was asked."""

    def asked_of(reply: Reply) -> str:
        return orjson.loads(reply.body)["messages"][-1]["content"]

    def said(reply: Reply) -> bytes:
        return HELLO.replace(b"hello", asked_of(reply).encode())

    engine.script = lambda reply: reply.stream(said(reply), LAST, DONE)
    return lambda: [asked_of(reply) for reply in engine.requests]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_near_question_has_the_same_answer(
    node: Node, engine: FakeEngine, embeddings: FakeEmbeddings, stream: bool
) -> None:
    asked = echoing(engine)
    first = await ask(node, ONE, stream=stream)
    near = await ask(node, NEAR, stream=stream)
    far = await ask(node, FAR, stream=stream)
    assert first[1:] == ("miss", None)
    assert near == (first[0], "hit", "0.970")
    assert far[1:] == ("miss", None)
    assert asked() == [ONE, FAR]
    assert embeddings.texts == [ONE, NEAR, FAR]
    assert embeddings.keys == {"Bearer im-node"}


async def test_the_same_question_comes_first_and_is_not_embedded_again(
    node: Node, embeddings: FakeEmbeddings
) -> None:
    await ask(node, ONE)
    assert (await ask(node, ONE))[1:] == ("hit", None)
    for _ in range(3):
        assert (await ask(node, NEAR))[1:] == ("hit", "0.970")
    assert embeddings.texts == [ONE, NEAR]


async def test_a_near_answer_is_no_step_to_the_next(node: Node, engine: FakeEngine) -> None:
    await ask(node, ONE)
    await ask(node, NEAR)
    # Near to the second question, which has its answer from the first; too far from the first.
    assert (await ask(node, NEARER_TO_NEAR))[1] == "miss"
    assert len(engine.requests) == 2


async def test_tenants_do_not_share(node: Node, engine: FakeEngine) -> None:
    asked = echoing(engine)
    assert (await ask(node, ONE, "a"))[1] == "miss"
    assert (await ask(node, NEAR, "b"))[1] == "miss"
    assert (await ask(node, NEAR, "a"))[1] == "hit"
    assert asked() == [ONE, NEAR]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.5},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": NEAR}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"logprobs": True},
        {"enable_caching": False},
        {"enable_caching": None},
        {"stream": True},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_what_else_differs_is_another_question(
    node: Node, engine: FakeEngine, fields: dict[str, object]
) -> None:
    await ask(node, ONE)
    assert (await ask(node, NEAR, **fields))[1] != "hit"
    assert len(engine.requests) == 2


async def test_wording_counts_however_near_the_vectors_are(node: Node, engine: FakeEngine) -> None:
    await ask(node, ONE)
    assert (await ask(node, "Do not."))[1] == "miss"


async def test_typed_streams_too(node: Node, engine: FakeEngine) -> None:
    metadata = caller("r")
    answers = []
    for text in (ONE, NEAR):
        request = pb.StreamChatRequest(chat=typed_chat(text, enable_caching=True))
        call = node.typed.StreamChat(request, metadata=metadata)
        answers.append([message async for message in call])
        said = dict(await call.initial_metadata())
    assert answers[0] == answers[1]
    assert said["x-mesh-cache-similarity"] == "0.970"
    assert len(engine.requests) == 1


async def test_many_at_once_are_embedded_once(
    node: Node, engine: FakeEngine, embeddings: FakeEmbeddings
) -> None:
    await ask(node, ONE)
    embeddings.delay_s = 0.05
    answers = await asyncio.gather(*(ask(node, NEAR) for _ in range(20)))
    assert {each[1:] for each in answers} == {("hit", "0.970")}
    assert embeddings.texts == [ONE, NEAR]
    assert len(engine.requests) == 1


async def test_a_hit_is_recorded_as_what_it_is(node: Node, mesh: FakeMesh) -> None:
    await ask(node, ONE)
    await ask(node, NEAR)
    await until(lambda: len(mesh.events) == 2)
    made, given = mesh.events
    assert (made.prompt_tokens, made.completion_tokens) == (3, 2)
    assert (given.model, given.tenant) == (MODEL, "t")
    assert (given.prompt_tokens, given.cached_tokens, given.completion_tokens) == (3, 3, 0)


@pytest.mark.parametrize("slowly", [True, False])
async def test_without_vectors_it_is_a_miss_and_the_next_does_not_wait(
    node: Node, engine: FakeEngine, embeddings: FakeEmbeddings, slowly: bool
) -> None:
    await ask(node, ONE)
    if slowly:
        embeddings.delay_s = 5
    else:
        embeddings.fails_with = MeshError(errors_pb2.ERROR_REASON_NO_NODE_AVAILABLE, "none")
    assert (await ask(node, NEAR))[1] == "miss"
    assert (await ask(node, FAR))[1] == "miss"
    assert embeddings.texts == [ONE, NEAR]
    assert (await ask(node, ONE))[1] == "hit"
    assert len(engine.requests) == 3


async def test_a_question_too_long_for_the_model_is_its_own_fault(
    node: Node, embeddings: FakeEmbeddings
) -> None:
    await ask(node, ONE)
    embeddings.fails_with = MeshError(errors_pb2.ERROR_REASON_INPUT_TOO_LONG, "too long")
    assert (await ask(node, FAR))[1] == "miss"
    embeddings.fails_with = None
    assert (await ask(node, NEAR))[1] == "hit"


async def test_who_hangs_up_while_it_is_embedded_leaves_nothing(
    node: Node, engine: FakeEngine, embeddings: FakeEmbeddings
) -> None:
    embeddings.delay_s = 0.1
    first = asyncio.create_task(ask(node, ONE))
    await until(lambda: embeddings.texts)
    second = asyncio.create_task(ask(node, ONE))
    first.cancel()
    assert (await second)[1] == "miss"
    assert len(engine.requests) == 1


def test_who_does_not_want_it_does_not_load_it() -> None:
    code = (
        "import sys, services.inference.app; "
        "print([n for n in sys.modules if n == 'numpy' or 'response_cache.semantic' in n])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
