"""Answers that are given again, over a running node."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from inference_node import (
    DIRECT,
    DONE,
    HELLO,
    LAST,
    MODEL,
    ROLE,
    USAGE,
    FakeEngine,
    FakeMesh,
    Node,
    Reply,
    caller,
    refusal,
    running,
    text_of,
    typed_chat,
    until,
)
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2


def _of(tenant: str, request_id: str = "r", **more: str) -> tuple[tuple[str, str], ...]:
    said = dict(caller(request_id)) | {"x-mesh-tenant": tenant} | more
    return tuple(said.items())


async def ask(node: Node, tenant: str = "t", **fields: object) -> tuple[bytes, str | None]:
    """Returns an answer and what its header says of the cache."""
    request = {"enable_caching": True, **fields}
    call = node.chat(metadata=_of(tenant), **request)
    body = text_of([message async for message in call])
    return body, dict(await call.initial_metadata()).get("x-mesh-cache")


@pytest.fixture
async def keeping(engine: FakeEngine, mesh: FakeMesh, tmp_path: Path) -> AsyncIterator[Node]:
    async with running(
        engine.port,
        mesh.address,
        tmp_path,
        response_cache_models="m,other-*",
        response_cache_answer_kib=8,
        max_queue_wait_s=0.5,
    ) as node:
        await until(node.is_serving)
        yield node


@pytest.mark.parametrize("stream", [True, False])
async def test_the_same_is_answered_once(node: Node, engine: FakeEngine, stream: bool) -> None:
    first = await ask(node, stream=stream)
    again = await ask(node, stream=stream)
    assert (first[1], again[1]) == ("miss", "hit")
    assert first[0] == again[0] != b""
    assert len(engine.requests) == 1
    if stream:
        assert first[0] == DIRECT


async def test_what_changes_no_answer_makes_no_difference(node: Node, engine: FakeEngine) -> None:
    await ask(node, temperature=0.5, seed=1)
    _, said = await ask(
        node, seed=1, temperature=0.5, user="u", stop=None, priority="high", session_id="s"
    )
    assert said == "hit"


@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 0.6},
        {"seed": 2},
        {"messages": [{"role": "user", "content": "hi "}]},
        {"unknown_to_us": 1},
        {"stream": True},
    ],
)
async def test_what_may_change_it_does(node: Node, engine: FakeEngine, other: dict) -> None:
    await ask(node, temperature=0.5)
    assert (await ask(node, **{"temperature": 0.5, **other}))[1] == "miss"
    assert len(engine.requests) == 2


async def test_usage_is_in_the_stream_for_those_who_ask(node: Node) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    plain, _ = await ask(node, stream=True)
    assert b'"usage"' not in plain
    for expected in ("miss", "hit"):
        body, said = await ask(node, **options)
        assert said == expected
        assert b'"prompt_tokens":3' in body


async def test_tenants_do_not_share(node: Node, engine: FakeEngine) -> None:
    assert (await ask(node, "a"))[1] == "miss"
    assert (await ask(node, "b"))[1] == "miss"
    assert (await ask(node, "a"))[1] == "hit"
    assert len(engine.requests) == 2


@pytest.mark.parametrize(
    ("fields", "metadata"),
    [
        ({}, _of("t")),
        ({"enable_caching": False, "temperature": 0}, _of("t")),
        ({"temperature": 0}, _of("t")),
        ({"enable_caching": True}, ()),
        ({"enable_caching": True}, _of("t", **{"x-mesh-decision": "{}"})),
        ({"enable_caching": True}, _of("t", **{"x-mesh-caching": "off"})),
        ({}, _of("t", **{"x-mesh-caching": "on"})),
    ],
    ids=[
        *("unasked", "refused", "model not kept", "inside the mesh", "debug mode"),
        *("key that wants none", "key that wants some, chance"),
    ],
)
async def test_who_does_not_ask_gets_a_new_answer(
    node: Node, engine: FakeEngine, fields: dict, metadata: tuple
) -> None:
    for _ in range(2):
        call = node.chat(metadata=metadata, **fields)
        assert text_of([message async for message in call])
        assert "x-mesh-cache" not in dict(await call.initial_metadata())
    assert len(engine.requests) == 2


async def cold(node: Node, caching: str) -> str | None:
    """Asks without a word of the cache, for no chance, with a key that wants `caching`."""
    call = node.chat(metadata=_of("t", **{"x-mesh-caching": caching}), temperature=0)
    assert text_of([message async for message in call])
    return dict(await call.initial_metadata()).get("x-mesh-cache")


async def test_a_key_that_wants_answers_again_gets_them_unasked(node: Node) -> None:
    assert [await cold(node, each) for each in ("on", "on", "")] == ["miss", "hit", None]


async def test_a_key_that_wants_none_gets_none_whatever_the_setting(keeping: Node) -> None:
    assert [await cold(keeping, each) for each in ("off", "", "off", "")] == [
        *(None, "miss", None, "hit"),
    ]


async def test_answers_of_models_are_kept_by_setting(keeping: Node, engine: FakeEngine) -> None:
    quiet = {"enable_caching": None, "temperature": 0}
    assert [(await ask(keeping, **quiet))[1] for _ in range(2)] == ["miss", "hit"]
    # Chance is asked for, or nothing is said of it.
    assert (await ask(keeping, enable_caching=None, temperature=0.1))[1] is None
    assert (await ask(keeping, enable_caching=None))[1] is None
    assert (await ask(keeping, enable_caching=False, temperature=0))[1] is None


async def test_without_memory_there_is_no_cache(
    engine: FakeEngine, mesh: FakeMesh, tmp_path: Path
) -> None:
    async with running(engine.port, mesh.address, tmp_path, response_cache_mib=0) as node:
        await until(node.is_serving)
        assert [(await ask(node))[1] for _ in range(2)] == [None, None]
    assert len(engine.requests) == 2


@pytest.mark.parametrize("stream", [True, False])
async def test_many_at_once_are_one(node: Node, engine: FakeEngine, stream: bool) -> None:
    async def slowly(reply: Reply) -> None:
        await reply.start()
        await reply.send(ROLE + HELLO)
        await asyncio.sleep(0.2)
        await reply.send(LAST + USAGE + DONE)
        await reply.end()

    engine.script = slowly
    answers = await asyncio.gather(*(ask(node, stream=stream) for _ in range(50)))
    assert len(engine.requests) == 1
    assert len({body for body, _ in answers}) == 1
    assert sorted(said for _, said in answers) == ["hit"] * 49 + ["miss"]


async def test_who_waits_takes_over_from_one_who_left(node: Node, engine: FakeEngine) -> None:
    go_on = asyncio.Event()

    async def slowly(reply: Reply) -> None:
        await reply.start()
        await reply.send(HELLO)
        await go_on.wait()
        await reply.send(LAST + DONE)
        await reply.end()

    engine.script = slowly
    first = node.chat(metadata=_of("t"), enable_caching=True, stream=True)
    assert (await first.read()).data == HELLO
    others = [asyncio.create_task(ask(node, stream=True)) for _ in range(3)]
    await asyncio.sleep(0.05)
    first.cancel()
    await until(lambda: len(engine.requests) == 2)
    go_on.set()
    answers = await asyncio.gather(*others)
    assert sorted(said for _, said in answers) == ["hit", "hit", "miss"]
    assert len(engine.requests) == 2


async def test_who_waits_too_long_goes_too(keeping: Node, engine: FakeEngine) -> None:
    async def slowly(reply: Reply) -> None:
        await asyncio.sleep(1.5)
        await reply.stream(HELLO, LAST, DONE)

    engine.script = slowly
    answers = await asyncio.gather(*(ask(keeping, stream=True) for _ in range(3)))
    assert [said for _, said in answers] == ["miss"] * 3
    assert len(engine.requests) == 3
    assert (await ask(keeping, stream=True))[1] == "hit"


async def test_failures_are_not_kept(node: Node, engine: FakeEngine) -> None:
    engine.script = lambda reply: reply.json({"error": {"code": 400, "message": "no"}}, 400)
    chats = [node.chat(metadata=_of("t"), enable_caching=True) for _ in range(4)]
    assert {await refusal(chat) for chat in chats} == {("ENGINE_REJECTED", None)}

    async def break_off(reply: Reply) -> None:
        await reply.start()
        await reply.send(HELLO)
        await asyncio.sleep(0.05)
        reply.break_off()

    engine.script = break_off
    chat = node.chat(metadata=_of("t"), enable_caching=True, stream=True)
    assert (await refusal(chat))[0] == "ENGINE_FAILED"
    engine.script = lambda reply: reply.stream(HELLO, LAST, DONE)
    assert (await ask(node, stream=True)) == (HELLO + LAST + DONE, "miss")
    assert (await ask(node))[1] == "miss"


async def test_an_answer_that_is_too_large_is_not_kept(keeping: Node, engine: FakeEngine) -> None:
    async def at_length(reply: Reply) -> None:
        await reply.start()
        for _ in range(20):
            await reply.send(HELLO * 10)
            await asyncio.sleep(0.005)
        await reply.send(LAST + DONE)
        await reply.end()

    engine.script = at_length
    answers = await asyncio.gather(*(ask(keeping, stream=True) for _ in range(3)))
    # Nobody waits for the end of what nobody keeps.
    assert [said for _, said in answers] == ["miss"] * 3
    assert (await ask(keeping, stream=True))[1] == "miss"


async def test_a_stream_of_messages_is_given_again(node: Node, engine: FakeEngine) -> None:
    request = pb.StreamChatRequest(chat=typed_chat(enable_caching=True))
    first, again = [
        [message async for message in node.typed.StreamChat(request, metadata=_of("t"))]
        for _ in range(2)
    ]
    assert again == first
    assert first[-1].usage.prompt_tokens == 3
    assert len(engine.requests) == 1


async def test_a_hit_is_recorded_as_what_it_is(
    node: Node, engine: FakeEngine, mesh: FakeMesh
) -> None:
    for stream in (True, False):
        await ask(node, stream=stream)
        await ask(node, stream=stream)
    await until(lambda: len(mesh.events) == 4)
    made, given, *_ = mesh.events
    assert (made.prompt_tokens, made.completion_tokens) == (3, 2)
    for event in (given, mesh.events[3]):
        assert event.outcome == usage_pb2.OUTCOME_OK
        assert event.model == MODEL
        assert (event.prompt_tokens, event.cached_tokens) == (3, 3)
        assert event.HasField("completion_tokens")
        assert event.completion_tokens == 0


async def test_a_hit_of_unknown_size_stays_unknown(
    node: Node, engine: FakeEngine, mesh: FakeMesh
) -> None:
    engine.script = lambda reply: reply.stream(HELLO, LAST, DONE)
    await ask(node, stream=True)
    await ask(node, stream=True)
    await until(lambda: len(mesh.events) == 2)
    assert not mesh.events[1].HasField("prompt_tokens")
    assert not mesh.events[1].HasField("cached_tokens")


async def test_a_model_that_is_not_there_is_not_found(node: Node, engine: FakeEngine) -> None:
    body = {"model": "other", "messages": [{"role": "user", "content": "hi"}]}
    await ask(node)
    call = node.chat(metadata=_of("t", **{"x-mesh-model": "other"}), **body, enable_caching=True)
    assert (await refusal(call))[0] == "MODEL_NOT_FOUND"
    assert orjson.loads(engine.requests[0].body)["messages"] == body["messages"]
