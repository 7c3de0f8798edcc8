"""Every RPC of the embeddings service over an in-process server, real Redis and a fake node.

The node is scripted: a text's vector is its length and its first character, a word is a token,
and more than five words are too long. The ledger is a list.
"""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
import redis
from google.api import httpbody_pb2

from infermesh.auth.v1 import key_service_pb2
from infermesh.embeddings.v1 import embeddings_service_pb2 as pb
from infermesh.embeddings.v1 import embeddings_service_pb2_grpc as pb_grpc
from infermesh.errors.v1 import errors_pb2
from infermesh.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from infermesh.metrics.v1 import usage_service_pb2, usage_service_pb2_grpc
from services.embeddings.app import make_app
from services.embeddings.settings import EmbeddingsSettings
from services.kit import headers
from services.kit.errors import MeshError, from_rpc_error
from services.kit.guard import guarded
from services.kit.guardrails import header
from services.kit.server import serving

MODEL = "all-minilm-l6-v2"
MAX_WORDS = 5


class FakeNode(inference_service_pb2_grpc.InferenceServiceServicer):
    """A scripted node, in the place of Envoy and all nodes behind it."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.token_calls: list[list[list[int]]] = []
        self.dimensions: list[int | None] = []
        self.heeds_dimensions = True
        self.metadata: list[dict[str, Any]] = []
        self.abort_code: grpc.StatusCode | None = None
        self.counts_tokens = True
        self.reached = asyncio.Event()
        self.stopped = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def Embed(  # noqa: N802
        self, request: inference_service_pb2.EmbedRequest, context: Any
    ) -> inference_service_pb2.EmbedResponse:
        if request.token_inputs:
            self.token_calls.append([list(each.ids) for each in request.token_inputs])
        else:
            self.calls.append(list(request.inputs))
        size = request.dimensions if request.HasField("dimensions") else None
        self.dimensions.append(size)
        if not self.heeds_dimensions:
            size = None
        self.metadata.append(dict(context.invocation_metadata()))
        self.reached.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.stopped.set()
            raise
        if self.abort_code:
            await context.abort(self.abort_code, "upstream connect error")
        if request.model != MODEL:
            raise MeshError(errors_pb2.ERROR_REASON_MODEL_NOT_FOUND, "no such model", param="model")
        for index, text in enumerate(request.inputs):
            if len(text.split()) > MAX_WORDS:
                raise MeshError(
                    errors_pb2.ERROR_REASON_INPUT_TOO_LONG, "too long", param=f"input[{index}]"
                )
        embeddings = [
            inference_service_pb2.Embedding(
                values=[len(text), ord(text[0]) / 7][:size],
                tokens=len(text.split()) if self.counts_tokens else None,
            )
            for text in request.inputs
        ]
        embeddings += [
            inference_service_pb2.Embedding(
                values=[len(each.ids), each.ids[0]][:size], tokens=len(each.ids)
            )
            for each in request.token_inputs
        ]
        return inference_service_pb2.EmbedResponse(model=request.model, embeddings=embeddings)


class FakeLedger(usage_service_pb2_grpc.UsageServiceServicer):
    def __init__(self) -> None:
        self.events: list[usage_service_pb2.UsageEvent] = []
        self.arrived = asyncio.Event()

    async def RecordUsage(  # noqa: N802
        self, request: usage_service_pb2.RecordUsageRequest, context: Any
    ) -> usage_service_pb2.RecordUsageResponse:
        self.events.extend(request.events)
        self.arrived.set()
        return usage_service_pb2.RecordUsageResponse(recorded_count=len(request.events))

    async def got(self, count: int) -> list[usage_service_pb2.UsageEvent]:
        async with asyncio.timeout(40):
            while len(self.events) < count:
                self.arrived.clear()
                await self.arrived.wait()
        return self.events


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


@pytest.fixture
async def behind(node: FakeNode, ledger: FakeLedger) -> AsyncIterator[str]:
    """The address of the fakes."""
    server = grpc.aio.server()
    target = guarded(server)
    inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(node, target)
    usage_service_pb2_grpc.add_UsageServiceServicer_to_server(ledger, target)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
def empty_redis(redis_url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url)
    for key in client.scan_iter("emb:*"):
        client.delete(key)
    yield client
    client.close()


def _settings(behind: str, redis_url: str, state_dir: Path) -> EmbeddingsSettings:
    return EmbeddingsSettings(
        inference_address=behind,
        metrics_address=behind,
        redis_url=redis_url,
        state_dir=state_dir,
        drain_s=0,
    )


@pytest.fixture
async def stub(
    behind: str, redis_url: str, empty_redis: redis.Redis, tmp_path: Path
) -> AsyncIterator[pb_grpc.EmbeddingsServiceAsyncStub]:
    settings = _settings(behind, redis_url, tmp_path)
    async with (
        serving(settings, make_app(settings)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield pb_grpc.EmbeddingsServiceStub(channel)


def caller(request_id: str = "r-1", tenant: str = "acme", model: str = MODEL) -> tuple[Any, ...]:
    return (
        ("x-request-id", request_id),
        ("x-mesh-tenant", tenant),
        ("x-mesh-key-id", "key-1"),
        ("x-mesh-role", "user"),
        ("x-mesh-model", model),
    )


async def create(
    stub: pb_grpc.EmbeddingsServiceAsyncStub,
    texts: object,
    metadata: tuple[Any, ...] = (),
    **fields: object,
) -> Any:
    body = orjson.dumps({"model": MODEL, "input": texts, **fields})
    answer = await stub.CreateEmbeddings(
        httpbody_pb2.HttpBody(content_type="application/json", data=body),
        metadata=metadata or caller(),
    )
    assert answer.content_type == "application/json"
    return orjson.loads(answer.data)


async def refusal(call: Any) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    assert error is not None
    return error


def vector(text: str) -> list[float]:
    return list(struct.unpack("<2f", struct.pack("<2f", len(text), ord(text[0]) / 7)))


async def test_one_text(stub: pb_grpc.EmbeddingsServiceAsyncStub, node: FakeNode) -> None:
    answer = await create(stub, "hello there")
    assert answer == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": vector("hello there")}],
        "model": MODEL,
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }
    sent = node.metadata[0]
    assert (sent["x-mesh-model"], sent["x-request-id"]) == (MODEL, "r-1")
    assert not {"x-mesh-key-id", "x-mesh-tenant", "x-mesh-role", "authorization"} & set(sent)


async def test_a_list_in_base64_with_equal_texts(
    stub: pb_grpc.EmbeddingsServiceAsyncStub, node: FakeNode
) -> None:
    texts = ["b", "a", "b"]
    answer = await create(stub, texts, encoding_format="base64")
    got = [
        list(struct.unpack("<2f", base64.b64decode(item["embedding"]))) for item in answer["data"]
    ]
    assert got == [vector(text) for text in texts]
    assert answer["usage"]["prompt_tokens"] == 3
    assert node.calls == [["b", "a"]]


async def test_the_typed_twin_says_what_was_cached(
    stub: pb_grpc.EmbeddingsServiceAsyncStub, node: FakeNode
) -> None:
    await create(stub, "a b")
    answer = await stub.Embed(
        pb.EmbedRequest(model=MODEL, inputs=["c", "a b"]), metadata=caller("r-2")
    )
    assert [list(e.values) for e in answer.embeddings] == [vector("c"), vector("a b")]
    assert [e.cached for e in answer.embeddings] == [False, True]
    assert (answer.model, answer.prompt_tokens) == (MODEL, 3)
    assert node.calls == [["a b"], ["c"]]


async def test_the_cache_is_each_tenants_own_and_expires(
    stub: pb_grpc.EmbeddingsServiceAsyncStub, node: FakeNode, empty_redis: redis.Redis
) -> None:
    for tenant in ("acme", "acme", "other"):
        await create(stub, "a", caller(tenant=tenant))
    assert node.calls == [["a"], ["a"]]
    keys = list(empty_redis.scan_iter("emb:*"))
    assert len(keys) == 2
    assert all(0 < empty_redis.ttl(key) <= 7 * 86_400 for key in keys)


async def test_usage_of_each_call_reaches_the_ledger_once(
    stub: pb_grpc.EmbeddingsServiceAsyncStub, ledger: FakeLedger
) -> None:
    await create(stub, ["a b", "c"], caller("r-1"))
    await create(stub, ["a b", "d"], caller("r-2"))
    await refusal(create(stub, "1 2 3 4 5 6", caller("r-3")))
    await create(stub, "inside", metadata=(("x-request-id", "r-4"),))
    events = {event.request_id: event for event in await ledger.got(3)}
    assert set(events) == {"r-1", "r-2", "r-3"}
    first, second, third = events["r-1"], events["r-2"], events["r-3"]
    assert (first.prompt_tokens, first.cached_tokens, first.completion_tokens) == (3, 0, 0)
    assert (second.prompt_tokens, second.cached_tokens) == (3, 2)
    assert (first.node_id, first.tenant, first.key_id) == ("embeddings", "acme", "key-1")
    assert first.outcome == usage_service_pb2.OUTCOME_OK
    assert third.outcome == usage_service_pb2.OUTCOME_REJECTED
    assert not third.HasField("prompt_tokens")


async def test_concurrent_calls_share_calls_to_the_node(
    stub: pb_grpc.EmbeddingsServiceAsyncStub, node: FakeNode
) -> None:
    node.gate.clear()
    calls = [asyncio.create_task(create(stub, f"text {n}")) for n in range(60)]
    await node.reached.wait()
    await asyncio.sleep(0.5)  # the others have come by then, and wait
    node.gate.set()
    answers = await asyncio.gather(*calls)
    assert [a["data"][0]["embedding"] for a in answers] == [vector(f"text {n}") for n in range(60)]
    assert sum(len(call) for call in node.calls) == 60
    assert max(len(call) for call in node.calls) <= 32
    assert len(node.calls) < 30


async def test_an_input_that_is_too_long_is_named(
    stub: pb_grpc.EmbeddingsServiceAsyncStub,
) -> None:
    long = "1 2 3 4 5 6"
    rest, typed, fine = await asyncio.gather(
        refusal(create(stub, ["a", "b", long])),
        refusal(stub.Embed(pb.EmbedRequest(model=MODEL, inputs=["c", long]), metadata=caller())),
        create(stub, ["d", "e"]),
    )
    assert (rest.reason_name, rest.param) == ("INPUT_TOO_LONG", "input[2]")
    assert (typed.reason_name, typed.param) == ("INPUT_TOO_LONG", "inputs[1]")
    assert len(fine["data"]) == 2


async def test_an_unknown_model(stub: pb_grpc.EmbeddingsServiceAsyncStub) -> None:
    error = await refusal(create(stub, "a", caller(model="gpt-9"), model="gpt-9"))
    assert (error.reason_name, error.param) == ("MODEL_NOT_FOUND", "model")
    error = await refusal(create(stub, "a", (("x-request-id", "r"),), model="mödel\n"))
    assert (error.reason_name, error.param) == ("MODEL_NOT_FOUND", "model")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "NO_NODE_AVAILABLE"),
        (grpc.StatusCode.UNIMPLEMENTED, "MODEL_NOT_FOUND"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "ENGINE_TIMEOUT"),
        (grpc.StatusCode.UNKNOWN, "INTERNAL"),
    ],
)
async def test_replies_of_envoys_own(
    stub: pb_grpc.EmbeddingsServiceAsyncStub,
    node: FakeNode,
    code: grpc.StatusCode,
    reason: str,
) -> None:
    node.abort_code = code
    assert (await refusal(create(stub, "a"))).reason_name == reason


async def test_a_node_that_counts_no_tokens_fails(
    stub: pb_grpc.EmbeddingsServiceAsyncStub, node: FakeNode
) -> None:
    node.counts_tokens = False
    assert (await refusal(create(stub, "a"))).reason_name == "ENGINE_FAILED"


async def test_wrong_bodies(stub: pb_grpc.EmbeddingsServiceAsyncStub) -> None:
    bad = stub.CreateEmbeddings(httpbody_pb2.HttpBody(data=b"{"), metadata=caller())
    assert (await refusal(bad)).reason_name == "INVALID_JSON"
    error = await refusal(create(stub, ["a", 5.5]))
    assert (error.reason_name, error.param) == ("INVALID_ARGUMENT", "input[1]")
    error = await refusal(stub.Embed(pb.EmbedRequest(model=MODEL, inputs=["a", ""])))
    assert (error.reason_name, error.param) == ("INVALID_ARGUMENT", "inputs[1]")


async def test_a_body_may_not_name_another_model_than_auth_checked(
    stub: pb_grpc.EmbeddingsServiceAsyncStub, node: FakeNode
) -> None:
    error = await refusal(create(stub, "a", caller(model="another")))
    assert (error.reason_name, error.param) == ("INVALID_ARGUMENT", "model")
    assert node.calls == []


async def test_a_caller_who_leaves_stops_the_node(
    stub: pb_grpc.EmbeddingsServiceAsyncStub, node: FakeNode, ledger: FakeLedger
) -> None:
    node.gate.clear()
    call = asyncio.create_task(create(stub, "a"))
    await node.reached.wait()
    call.cancel()
    async with asyncio.timeout(20):
        await node.stopped.wait()
    (event,) = await ledger.got(1)
    assert event.outcome == usage_service_pb2.OUTCOME_CANCELLED


async def test_without_redis_and_ledger_calls_are_answered(
    node: FakeNode, behind: str, tmp_path: Path
) -> None:
    settings = _settings(behind, "redis://127.0.0.1:9", tmp_path).model_copy(
        update={"metrics_address": "127.0.0.1:9"}
    )
    async with (
        serving(settings, make_app(settings)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = pb_grpc.EmbeddingsServiceStub(channel)
        for _ in range(2):
            assert (await create(stub, "a"))["usage"]["total_tokens"] == 1
    assert node.calls == [["a"], ["a"]]


async def test_a_redis_that_hangs_costs_its_timeout_once(
    node: FakeNode, behind: str, tmp_path: Path
) -> None:
    writers = []

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    mute = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = mute.sockets[0].getsockname()[1]
    settings = _settings(behind, f"redis://127.0.0.1:{port}", tmp_path)
    loop = asyncio.get_running_loop()
    async with (
        serving(settings, make_app(settings)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = pb_grpc.EmbeddingsServiceStub(channel)
        took = []
        for _ in range(3):
            start = loop.time()
            await create(stub, "a")
            took.append(loop.time() - start)
    mute.close()
    for writer in writers:
        writer.close()
    assert took[0] < 5.0
    assert len(writers) == 1


def guarded_caller(**wanted: Any) -> tuple[Any, ...]:
    guardrails = header.write(key_service_pb2.Guardrails(**wanted))
    return (*caller(), (headers.GUARDRAILS, guardrails))


async def test_guardrails_stand_before_the_cache_and_the_node(
    stub: pb_grpc.EmbeddingsServiceAsyncStub, node: FakeNode
) -> None:
    redact = guarded_caller(redact=[key_service_pb2.REDACTION_EMAIL_ADDRESSES])
    # Without guardrails the text goes on, and into the cache.
    await create(stub, "jane@example.com")
    answer = await create(stub, ["jane@example.com", "hi"], redact)
    assert node.calls == [["jane@example.com"], ["<EMAIL_ADDRESS>", "hi"]]
    assert answer["data"][0]["embedding"] == vector("<EMAIL_ADDRESS>")
    assert headers.GUARDRAILS not in node.metadata[-1]
    call = stub.Embed(pb.EmbedRequest(model=MODEL, inputs=["to jane@example.com"]), metadata=redact)
    await call
    assert node.calls[-1] == ["to <EMAIL_ADDRESS>"]
    assert dict(await call.initial_metadata())[headers.REDACTIONS] == "1"
    # A refusal comes alone, which makes it the body of REST callers.
    late = stub.Embed(
        pb.EmbedRequest(model=MODEL, inputs=["jane@example.com " * 6]), metadata=redact
    )
    assert (await refusal(late)).reason_name == "INPUT_TOO_LONG"
    assert headers.REDACTIONS not in dict(await late.initial_metadata())


async def test_guardrails_refuse_texts(
    stub: pb_grpc.EmbeddingsServiceAsyncStub, node: FakeNode, ledger: FakeLedger
) -> None:
    wanted = guarded_caller(blocked_patterns=["zebra"], max_prompt_chars=10)
    error = await refusal(create(stub, ["hi", "a zebra"], wanted))
    assert (error.reason_name, error.param) == ("CONTENT_BLOCKED", "input[1]")
    error = await refusal(create(stub, ["123456", "12345"], wanted))
    assert (error.reason_name, error.param) == ("INPUT_TOO_LONG", "input")
    request = pb.EmbedRequest(model=MODEL, inputs=["zebra"])
    error = await refusal(stub.Embed(request, metadata=wanted))
    assert (error.reason_name, error.param) == ("CONTENT_BLOCKED", "inputs[0]")
    assert node.calls == []
    events = await ledger.got(1)
    assert {event.outcome for event in events} == {usage_service_pb2.OUTCOME_REJECTED}


async def test_tokens_and_dimensions_go_to_the_node(
    stub: pb_grpc.EmbeddingsServiceAsyncStub, node: FakeNode
) -> None:
    one = await create(stub, [1, 2, 3])
    assert one["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert len(one["data"]) == 1
    two = await create(stub, [[1, 2, 3], [7]])
    assert two["data"][0]["embedding"] == one["data"][0]["embedding"]
    assert node.token_calls == [[[1, 2, 3]], [[7]]]  # the first came from the cache
    small = await create(stub, "hello", dimensions=1)
    assert small["data"][0]["embedding"] == [5.0]
    assert node.dimensions == [None, None, 1]
    typed = await stub.Embed(
        pb.EmbedRequest(model=MODEL, token_inputs=[pb.TokenInput(ids=[7])], dimensions=1)
    )
    assert len(typed.embeddings[0].values) == 1


async def test_what_the_node_cannot_do_is_said(
    stub: pb_grpc.EmbeddingsServiceAsyncStub, node: FakeNode
) -> None:
    node.heeds_dimensions = False
    error = await refusal(create(stub, "hello", dimensions=1))
    assert (error.reason_name, error.param, error.http_status) == ("UNSUPPORTED", "dimensions", 400)
    error = await refusal(create(stub, [1], guarded_caller(blocked_patterns=["zebra"])))
    assert (error.reason_name, error.param) == ("UNSUPPORTED", "input")
    both = pb.EmbedRequest(model=MODEL, inputs=["a"], token_inputs=[pb.TokenInput(ids=[7])])
    assert (await refusal(stub.Embed(both))).reason_name == "INVALID_ARGUMENT"
    neither = pb.EmbedRequest(model=MODEL)
    assert (await refusal(stub.Embed(neither))).reason_name == "INVALID_ARGUMENT"


async def test_a_matryoshka_model_is_cut_here(
    behind: str, redis_url: str, empty_redis: redis.Redis, tmp_path: Path, node: FakeNode
) -> None:
    settings = _settings(behind, redis_url, tmp_path).model_copy(
        update={"matryoshka_models": "other,all-*"}
    )
    async with (
        serving(settings, make_app(settings)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = pb_grpc.EmbeddingsServiceStub(channel)
        assert (await create(stub, "hello", dimensions=1))["data"][0]["embedding"] == [1.0]
        assert node.dimensions == [None]
        error = await refusal(create(stub, "hello", dimensions=3))
        assert (error.reason_name, error.param) == ("INVALID_ARGUMENT", "dimensions")
