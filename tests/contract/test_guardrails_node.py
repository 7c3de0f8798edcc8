"""What an engine gets, and what callers are told, where a key has guardrails."""

from typing import Any

import orjson
import pytest
from google.api import httpbody_pb2

from inference_node import (
    MODEL,
    FakeEngine,
    FakeMesh,
    Node,
    refusal,
    rest,
    typed_chat,
    until,
)
from infermesh.auth.v1 import key_service_pb2
from infermesh.inference.v1 import inference_service_pb2 as pb
from services.kit import headers
from services.kit.guardrails import header

MAIL = "jane@example.com"
WORD = "<EMAIL_ADDRESS>"
TEXTS = [{"role": "user", "content": f"Mail {MAIL} or {MAIL}."}]
WANTED = header.write(
    key_service_pb2.Guardrails(
        max_prompt_chars=100,
        blocked_patterns=["zebra"],
        redact=[key_service_pb2.REDACTION_EMAIL_ADDRESSES],
    )
)
GUARDED = ((headers.GUARDRAILS, WANTED),)


def asked(engine: FakeEngine) -> Any:
    return orjson.loads(engine.requests[-1].body)


async def redactions(call: Any) -> str | None:
    return dict(await call.initial_metadata()).get(headers.REDACTIONS)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("form", ["", "false"])
async def test_the_engine_gets_the_redacted_chat(
    node: Node, engine: FakeEngine, stream: bool, form: str
) -> None:
    if stream and form:
        pytest.skip("Envoy never says so of a stream")
    metadata = (*GUARDED, (headers.STREAM, form)) if form else GUARDED
    call = node.chat(metadata, messages=TEXTS, stream=stream)
    assert b"hello" in await rest(call)
    assert asked(engine)["messages"] == [{"role": "user", "content": f"Mail {WORD} or {WORD}."}]
    assert await redactions(call) == "2"


async def test_without_guardrails_the_bytes_pass_as_they_are(
    node: Node, engine: FakeEngine
) -> None:
    body = b'{ "model":"m", "stream":true,"messages":[{"role":"user","content":"%b"}]}' % (
        MAIL.encode()
    )
    call = node.openai.CreateChatCompletion(httpbody_pb2.HttpBody(data=body))
    await rest(call)
    assert engine.requests[-1].body.endswith(body[1:])
    assert await redactions(call) is None


async def test_where_nothing_is_replaced_nothing_is_said(node: Node, engine: FakeEngine) -> None:
    call = node.chat(GUARDED)
    await rest(call)
    assert await redactions(call) is None
    assert asked(engine)["messages"] == [{"role": "user", "content": "hi"}]


async def test_completions(node: Node, engine: FakeEngine) -> None:
    body = orjson.dumps({"model": MODEL, "prompt": ["hi", MAIL]})
    call = node.openai.CreateCompletion(httpbody_pb2.HttpBody(data=body), metadata=GUARDED)
    await rest(call)
    assert asked(engine)["prompt"] == ["hi", WORD]
    tokens = httpbody_pb2.HttpBody(data=orjson.dumps({"model": MODEL, "prompt": [1, 2]}))
    call = node.openai.CreateCompletion(tokens, metadata=GUARDED)
    assert await refusal(call) == ("UNSUPPORTED", "prompt")


async def test_refusals_reach_no_engine(node: Node, engine: FakeEngine, mesh: FakeMesh) -> None:
    zebra = [{"role": "user", "content": "a ｚebra"}]
    assert await refusal(node.chat(GUARDED, messages=zebra)) == (
        "CONTENT_BLOCKED",
        "messages[0].content",
    )
    long = [{"role": "user", "content": "x" * 101}]
    assert await refusal(node.chat(GUARDED, messages=long)) == ("INPUT_TOO_LONG", "messages")
    typed = pb.StreamChatRequest(chat=typed_chat("zebra"))
    assert await refusal(node.typed.Chat(typed_chat("zebra"), metadata=GUARDED)) == (
        "CONTENT_BLOCKED",
        "messages[0].content",
    )
    assert (await refusal(node.typed.StreamChat(typed, metadata=GUARDED)))[0] == "CONTENT_BLOCKED"
    assert engine.requests == []


async def test_what_this_node_does_not_know_it_refuses(node: Node, engine: FakeEngine) -> None:
    # A field of a later version, and what is no header at all.
    for text in ("eAE=", "?"):
        call = node.chat(((headers.GUARDRAILS, text),))
        assert (await refusal(call))[0] == "INTERNAL"
    assert engine.requests == []


async def test_typed_chats(node: Node, engine: FakeEngine) -> None:
    call = node.typed.Chat(typed_chat(f"to {MAIL}"), metadata=GUARDED)
    await call
    assert asked(engine)["messages"][0]["content"] == f"to {WORD}"
    assert await redactions(call) == "1"
    stream = node.typed.StreamChat(
        pb.StreamChatRequest(chat=typed_chat(f"for {MAIL}")), metadata=GUARDED
    )
    assert [message async for message in stream]
    assert asked(engine)["messages"][0]["content"] == f"for {WORD}"
    assert await redactions(stream) == "1"


async def test_texts_for_vectors(embedder: Node, engine: FakeEngine) -> None:
    # The engine of this test counts words: a replaced address is one, its parts are three.
    wanted = header.write(
        key_service_pb2.Guardrails(
            blocked_patterns=["zebra"], redact=[key_service_pb2.REDACTION_PHONE_NUMBERS]
        )
    )
    metadata = ((headers.GUARDRAILS, wanted),)
    request = pb.EmbedRequest(model=MODEL, inputs=["call +49 30 901820", "+49 30 901820"])
    call = embedder.typed.Embed(request, metadata=metadata)
    assert [vector.values[0] for vector in (await call).embeddings] == [2.0, 1.0]
    assert await redactions(call) == "2"
    request = pb.EmbedRequest(model=MODEL, inputs=["hi", "zebra"])
    assert await refusal(embedder.typed.Embed(request, metadata=metadata)) == (
        "CONTENT_BLOCKED",
        "inputs[1]",
    )


async def test_a_long_prompt_is_checked_and_the_node_goes_on_meanwhile(
    node: Node, engine: FakeEngine
) -> None:
    wanted = header.write(
        key_service_pb2.Guardrails(redact=[key_service_pb2.REDACTION_EMAIL_ADDRESSES])
    )
    long = [{"role": "user", "content": "word " * 200_000 + MAIL}]
    call = node.chat(((headers.GUARDRAILS, wanted),), messages=long)
    reading = rest(call)
    assert await rest(node.chat())
    await reading
    await until(lambda: len(engine.requests) == 2)
    contents = [orjson.loads(each.body)["messages"][0]["content"] for each in engine.requests]
    assert any(content.endswith(f"word {WORD}") for content in contents)
