"""Answers that are given again beside limits, guardrails, aliases and callers who hang up."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from contract.metrics_world import DAY, START_S, Auth, Service, settings, wipe
from contract.metrics_world import running as ledger
from inference_node import (
    ANSWER,
    DONE,
    HELLO,
    LAST,
    MODEL,
    USAGE,
    FakeEngine,
    FakeMesh,
    Node,
    Reply,
    caller,
    refusal,
    rest,
    running,
    typed_chat,
    until,
)
from infermesh.auth.v1 import key_service_pb2
from infermesh.inference.v1 import inference_service_pb2 as pb
from services.kit import headers
from services.kit.guardrails import header

MAIL = "jane@example.com"


def of(request_id: str = "r", **more: str) -> tuple[tuple[str, str], ...]:
    return tuple((dict(caller(request_id)) | more).items())


async def ask(node: Node, *, metadata: Any = (), **fields: Any) -> tuple[bytes, str | None]:
    """Returns an answer and what its header says of the cache."""
    call = node.chat(metadata=metadata or of(), enable_caching=True, **fields)
    body = await rest(call)
    return body, dict(await call.initial_metadata()).get("x-mesh-cache")


class Slow:
    """An engine that says the rest when it is told to."""

    def __init__(self, engine: FakeEngine) -> None:
        self.go_on = asyncio.Event()
        engine.script = self._answer

    async def _answer(self, reply: Reply) -> None:
        await reply.start()
        await reply.send(HELLO)
        await self.go_on.wait()
        await reply.send(LAST + USAGE + DONE)
        await reply.end()


@pytest.mark.parametrize("stream", [True, False])
async def test_limits_and_the_ledger_count_a_hit_as_a_call_of_cached_tokens(
    node: Node, engine: FakeEngine, mesh: FakeMesh, postgres_url: str, tmp_path: Path, stream: bool
) -> None:
    usage = USAGE.replace(b'_tokens":2', b'_tokens":2,"prompt_tokens_details":{"cached_tokens":0}')
    engine.script = lambda reply: reply.stream(HELLO, LAST, usage, DONE)
    for number in range(3):
        metadata = of(f"call-{number}", **{headers.RESERVED: "1"})
        await ask(node, metadata=metadata, stream=stream)
    await until(lambda: len(mesh.events) == 3)
    for event in mesh.events:
        event.start_time.seconds = START_S
    await wipe(postgres_url)
    auth = Auth()
    async with (
        auth.listening() as address,
        ledger(settings(postgres_url, tmp_path / "ledger", address)) as service,
    ):
        await paid(service, mesh, auth)


async def paid(service: Service, mesh: FakeMesh, auth: Auth) -> None:
    await service.set_price(MODEL, "2", "10", "1")
    assert await service.record(*mesh.events) == 3
    await until(lambda: len(auth.settled) == 3)
    # What a call has reserved and not taken comes back: a hit takes its prompt.
    assert auth.settled == {"call-0": 5, "call-1": 3, "call-2": 3}
    (total,) = await service.sums()
    assert total.request_count == 3
    assert (total.prompt_tokens, total.completion_tokens, total.cached_tokens) == (9, 2, 6)
    # Millionths of a dollar: 3·2 + 2·10 for the call, 3·1 for each hit.
    day = await service.total(key_id="k", start=DAY)
    assert (day.tokens, day.usd) == (11, "0.000032")


@pytest.mark.parametrize("stream", [True, False])
async def test_one_of_those_who_wait_hangs_up(
    engine: FakeEngine, mesh: FakeMesh, tmp_path: Path, stream: bool
) -> None:
    # With room for two to wait, a place that is not given back would send the next to the engine.
    async with running(engine.port, mesh.address, tmp_path, max_queued=2) as node:
        await until(node.is_serving)
        slow = Slow(engine)
        first = asyncio.create_task(ask(node, stream=stream))
        await until(lambda: engine.requests)
        stays = asyncio.create_task(ask(node, stream=stream))
        for number in range(5):
            leaves = node.chat(metadata=of(f"{number}"), enable_caching=True, stream=stream)
            reading = asyncio.create_task(rest(leaves))
            await asyncio.sleep(0.03)
            leaves.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        last = asyncio.create_task(ask(node, stream=stream))
        await asyncio.sleep(0.05)
        slow.go_on.set()
        answers = await asyncio.gather(first, stays, last)
        assert [said for _, said in answers] == ["miss", "hit", "hit"]
        assert len({body for body, _ in answers}) == 1
        assert len(engine.requests) == 1
        assert not engine.hung_up.is_set()
        await until(lambda: len(mesh.events) == 3)
        # Neither a place in the queue nor an answer under way is left.
        assert (await ask(node, stream=stream, seed=1))[1] == "miss"


async def test_all_of_those_who_wait_hang_up(node: Node, engine: FakeEngine) -> None:
    slow = Slow(engine)
    calls = [node.chat(metadata=of(), enable_caching=True, stream=True) for _ in range(3)]
    reading = [asyncio.create_task(rest(call)) for call in calls]
    await until(lambda: engine.requests)
    await asyncio.sleep(0.05)
    for call in calls:
        call.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    # Sooner than the node would give up the engine itself.
    await asyncio.wait_for(engine.hung_up.wait(), 2)
    slow.go_on.set()
    assert [(await ask(node, stream=True))[1] for _ in range(2)] == ["miss", "hit"]


class TwoModels(FakeEngine):
    """Serves a second model too."""

    async def _answer(self, reply: Reply) -> None:
        if reply.path == "/v1/models":
            await reply.json({"data": [{"id": "m"}, {"id": "n"}]})
        elif reply.path == "/health":
            await reply.json({})
        else:
            await super()._answer(reply)


@pytest.fixture
async def two(mesh: FakeMesh, tmp_path: Path) -> AsyncIterator[tuple[Node, FakeEngine]]:
    engine = TwoModels()
    await engine.start()
    async with running(engine.port, mesh.address, tmp_path, engine="openai") as node:
        await until(node.is_serving)
        yield node, engine
    await engine.stop()


@pytest.mark.parametrize("form", ["openai", "openai stream", "typed"])
async def test_an_alias_that_changes_is_another_question(
    two: tuple[Node, FakeEngine], form: str
) -> None:
    node, engine = two

    async def named(reply: Reply) -> None:
        asked = orjson.loads(reply.body)
        model = asked["model"]
        if asked.get("stream"):
            await reply.stream(
                ANSWER.replace(b'{"choices"', b'{"model":"%b","choices"' % model.encode())
            )
            return
        choice = {"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}
        await reply.json({"model": model, "choices": [choice]})

    engine.script = named

    async def models(target: str) -> set[str]:
        # As routing says it of an alias.
        metadata = of(**{headers.MODEL: "alias", headers.MODELS: target})
        if form == "typed":
            chat = typed_chat(enable_caching=True)
            chat.model = "alias"
            return {(await node.typed.Chat(chat, metadata=metadata)).model}
        is_stream = form == "openai stream"
        body, _ = await ask(node, metadata=metadata, model="alias", stream=is_stream)
        if not is_stream:
            return {orjson.loads(body)["model"]}
        lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
        return {orjson.loads(line)["model"] for line in lines}

    assert [await models(target) for target in ("m", "m", "n", "n", "m")] == [
        *({"m"}, {"m"}, {"n"}, {"n"}, {"m"})
    ]
    assert [orjson.loads(each.body)["model"] for each in engine.requests] == ["m", "n"]


def guarded(**wanted: Any) -> tuple[tuple[str, str], ...]:
    return of(**{headers.GUARDRAILS: header.write(key_service_pb2.Guardrails(**wanted))})


async def test_a_guardrail_that_comes_later_stands_before_what_is_kept(
    node: Node, engine: FakeEngine, mesh: FakeMesh
) -> None:
    messages = [{"role": "user", "content": f"Mail {MAIL}."}]
    for stream in (True, False):
        await ask(node, messages=messages, stream=stream)
        assert (await ask(node, messages=messages, stream=stream))[1] == "hit"
    await node.typed.Chat(typed_chat(f"to {MAIL}", enable_caching=True), metadata=of())
    assert len(engine.requests) == 3
    blocked = guarded(blocked_patterns=["jane@"])
    for stream in (True, False):
        call = node.chat(metadata=blocked, messages=messages, stream=stream, enable_caching=True)
        assert (await refusal(call))[0] == "CONTENT_BLOCKED"
    call = node.typed.Chat(typed_chat(f"to {MAIL}", enable_caching=True), metadata=blocked)
    assert (await refusal(call))[0] == "CONTENT_BLOCKED"
    stream_chat = pb.StreamChatRequest(chat=typed_chat(f"to {MAIL}", enable_caching=True))
    call = node.typed.StreamChat(stream_chat, metadata=blocked)
    assert (await refusal(call))[0] == "CONTENT_BLOCKED"
    short = guarded(max_prompt_chars=5)
    call = node.chat(metadata=short, messages=messages, enable_caching=True)
    assert (await refusal(call))[0] == "INPUT_TOO_LONG"
    assert len(engine.requests) == 3
    # What is replaced is another question, whose answer those without the guardrail may have.
    redacting = guarded(redact=[key_service_pb2.REDACTION_EMAIL_ADDRESSES])
    found = [(await ask(node, metadata=redacting, messages=messages))[1] for _ in range(2)]
    assert found == ["miss", "hit"]
    assert MAIL.encode() not in engine.requests[-1].body
    assert (await ask(node, messages=messages))[1] == "hit"
