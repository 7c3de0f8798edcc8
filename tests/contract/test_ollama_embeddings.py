"""Ollama's form of the embeddings service: the same cache, node and ledger as OpenAI's."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
import redis
from google.api import httpbody_pb2

from contract.test_embeddings import (
    MODEL,
    FakeLedger,
    FakeNode,
    behind,
    caller,
    empty_redis,
    ledger,
    node,
    refusal,
    vector,
)
from infermesh.auth.v1 import key_service_pb2
from infermesh.embeddings.v1 import ollama_embeddings_service_pb2_grpc as pb_grpc
from services.embeddings.app import make_app
from services.embeddings.settings import EmbeddingsSettings
from services.kit import headers
from services.kit.guardrails import header
from services.kit.server import serving

__all__ = ["behind", "empty_redis", "ledger", "node"]


@pytest.fixture
async def ollama(
    behind: str, redis_url: str, empty_redis: redis.Redis, tmp_path: Path
) -> AsyncIterator[Any]:
    settings = EmbeddingsSettings(
        inference_address=behind,
        metrics_address=behind,
        redis_url=redis_url,
        state_dir=tmp_path,
        drain_s=0,
    )
    async with (
        serving(settings, make_app(settings)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield pb_grpc.OllamaEmbeddingsServiceStub(channel)


def body(**fields: object) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(data=orjson.dumps({"model": MODEL, **fields}))


async def test_both_forms_and_the_ledger(ollama: Any, node: FakeNode, ledger: FakeLedger) -> None:
    answer = await ollama.EmbedTexts(body(input=["a b", "c"]), metadata=caller("r-1"))
    said = orjson.loads(answer.data)
    assert said.pop("total_duration") > 0
    assert said == {
        "model": MODEL,
        "embeddings": [vector("a b"), vector("c")],
        "prompt_eval_count": 3,
    }
    request = body(model=f"{MODEL}:latest", prompt="a b")
    answer = await ollama.EmbedPrompt(request, metadata=caller("r-2"))
    assert orjson.loads(answer.data) == {"embedding": vector("a b")}
    assert node.calls == [["a b", "c"]]  # the second is in the cache
    events = {event.request_id: event for event in await ledger.got(2)}
    assert [events[each].prompt_tokens for each in ("r-1", "r-2")] == [3, 2]
    assert events["r-2"].cached_tokens == 2
    assert {event.model for event in events.values()} == {MODEL}


async def test_refusals_are_accounted_too(ollama: Any, ledger: FakeLedger) -> None:
    error = await refusal(ollama.EmbedTexts(body(input="a b c d e f"), metadata=caller("r-1")))
    assert (error.reason_name, error.param) == ("INPUT_TOO_LONG", "input[0]")
    error = await refusal(ollama.EmbedPrompt(body(prompt=["a"]), metadata=caller("r-2")))
    assert (error.reason_name, error.param) == ("INVALID_ARGUMENT", "prompt")
    error = await refusal(ollama.EmbedTexts(body(model="other", input="a"), metadata=caller("r-3")))
    assert (error.reason_name, error.param) == ("INVALID_ARGUMENT", "model")
    assert len(await ledger.got(3)) == 3


async def test_guardrails_hold(ollama: Any, node: FakeNode) -> None:
    wanted = header.write(key_service_pb2.Guardrails(blocked_patterns=["secret"]))
    metadata = (*caller(), (headers.GUARDRAILS, wanted))
    error = await refusal(ollama.EmbedTexts(body(input="a secret"), metadata=metadata))
    assert error.reason_name == "CONTENT_BLOCKED"
    assert not node.calls
