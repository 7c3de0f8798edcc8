"""Responses over real PostgreSQL and a real inference proxy: kept, scoped, accounted, cancelled."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import orjson
import pytest

from inference_node import ANSWER, HELLO, MODEL, ROLE, FakeEngine, FakeMesh, Node, until
from infermesh.auth.v1 import key_service_pb2
from infermesh.jobs.v1 import response_service_pb2 as pb
from infermesh.metrics.v1 import usage_service_pb2 as usage
from jobs_world import Jobs, events, jobs, of, refusal
from services.jobs.responses.store import ResponseStore
from services.kit import headers
from services.kit.errors import StoreUnavailableError
from services.kit.guardrails import header


@pytest.fixture
async def service(postgres_url: str, node: Node) -> AsyncIterator[Jobs]:
    async with jobs(postgres_url, node.address) as service:
        yield service


def get(service: Jobs, response_id: str, metadata: Any = ()) -> Any:
    request = pb.GetResponseRequest(response_id=response_id)
    return service.responses.GetResponse(request, metadata=metadata or of())


async def test_an_answer_is_kept_and_gone_on_from(service: Jobs, engine: FakeEngine) -> None:
    first = await service.created(instructions="Be brief.")
    assert (first["status"], first["store"]) == ("completed", True)
    assert first["output"][0]["content"][0]["text"] == "hello"
    assert first["usage"]["input_tokens"] == 3
    assert orjson.loads((await get(service, first["id"])).data) == first

    second = await service.created(input="more", previous_response_id=first["id"])
    third = await service.created(input="and more", previous_response_id=second["id"])
    assert orjson.loads(engine.requests[-1].body)["messages"] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and more"},
    ]
    request = pb.ListInputItemsRequest(response_id=third["id"], order="asc", limit=3)
    page = orjson.loads((await service.responses.ListInputItems(request, metadata=of())).data)
    assert [item["role"] for item in page["data"]] == ["user", "assistant", "user"]
    assert page["has_more"] is True
    request.after = page["last_id"]
    page = orjson.loads((await service.responses.ListInputItems(request, metadata=of())).data)
    assert [item["content"][0]["text"] for item in page["data"]] == ["hello", "and more"]
    assert page["has_more"] is False

    # A link that is gone breaks the conversation, and says so.
    deleted = pb.DeleteResponseRequest(response_id=first["id"])
    await service.responses.DeleteResponse(deleted, metadata=of())
    assert await refusal(get(service, first["id"])) == ("NOT_FOUND", "response_id")
    call = service.create(previous_response_id=third["id"])
    assert await refusal(call.read()) == ("NOT_FOUND", "previous_response_id")


async def test_a_stream(service: Jobs, mesh: FakeMesh) -> None:
    found = await events(service.create(stream=True, metadata=of(request_id="one", reserved="1")))
    assert [event["type"].removeprefix("response.") for event in found] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.done", "content_part.done", "output_item.done"),
        "completed",
    ]
    final = found[-1]["response"]
    assert orjson.loads((await get(service, final["id"])).data) == final
    await until(lambda: mesh.events)
    # Once, under the caller's key and the id that auth's reservation has.
    (event,) = mesh.events
    assert (event.request_id, event.key_id, event.tenant) == ("one", "k", "t")
    assert (event.prompt_tokens, event.completion_tokens) == (3, 2)
    assert event.reserved and event.streamed and event.outcome == usage.OUTCOME_OK


@pytest.mark.parametrize(
    "other", [of("other"), of(project="p")], ids=["another tenant", "another project"]
)
async def test_others_see_nothing(service: Jobs, other: Any) -> None:
    made = (await service.created())["id"]
    assert await refusal(get(service, made, other)) == ("NOT_FOUND", "response_id")
    for name, request in (
        ("DeleteResponse", pb.DeleteResponseRequest(response_id=made)),
        ("CancelResponse", pb.CancelResponseRequest(response_id=made)),
        ("ListInputItems", pb.ListInputItemsRequest(response_id=made)),
    ):
        call = getattr(service.responses, name)(request, metadata=other)
        assert await refusal(call) == ("NOT_FOUND", "response_id"), name
    call = service.create(other, previous_response_id=made)
    assert await refusal(call.read()) == ("NOT_FOUND", "previous_response_id")
    assert (await get(service, made)).data


async def test_what_is_not_to_be_kept_is_not(service: Jobs) -> None:
    made = await service.created(store=False)
    assert made["store"] is False
    assert await refusal(get(service, made["id"])) == ("NOT_FOUND", "response_id")


async def test_it_expires(postgres_url: str, node: Node) -> None:
    async with jobs(postgres_url, node.address, response_ttl_s=3) as service:
        made = (await service.created())["id"]
        assert (await get(service, made)).data
        await asyncio.sleep(3.1)
        assert await refusal(get(service, made)) == ("NOT_FOUND", "response_id")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_hang_up_stops_the_engine(
    service: Jobs, engine: FakeEngine, mesh: FakeMesh, stream: bool
) -> None:
    async def slow(reply: Any) -> None:
        await reply.start()
        await reply.send(ROLE + HELLO)
        await asyncio.sleep(30)

    engine.script = slow
    call = service.create(stream=stream)
    if stream:
        await call.read()
    else:
        await until(lambda: engine.requests)
        await asyncio.sleep(0.05)
    call.cancel()
    async with asyncio.timeout(10):
        await engine.hung_up.wait()
    await until(lambda: mesh.events)
    assert mesh.events[0].outcome == usage.OUTCOME_CANCELLED


async def test_the_first_events_do_not_wait_for_the_last(service: Jobs, engine: FakeEngine) -> None:
    go_on = asyncio.Event()

    async def halting(reply: Any) -> None:
        await reply.start()
        await reply.send(ROLE + HELLO)
        await go_on.wait()
        await reply.send(ANSWER.removeprefix(ROLE + HELLO))
        await reply.end()

    engine.script = halting
    call = service.create(stream=True)
    first = b""
    async with asyncio.timeout(20):
        while b"output_text.delta" not in first:
            first += (await call.read()).data
    go_on.set()
    assert (await events(call))[-1]["type"] == "response.completed"


async def test_a_stream_that_breaks_ends_as_failed_and_is_kept_so(
    service: Jobs, engine: FakeEngine
) -> None:
    async def breaking(reply: Any) -> None:
        await reply.start()
        await reply.send(ROLE + HELLO)
        await asyncio.sleep(0.4)  # it has been read by then
        reply.break_off()

    engine.script = breaking
    found = []
    call = service.create(stream=True)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in call:
            found += message.data.split(b"\n\n")[:-1]
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    error, failed = (orjson.loads(each.split(b"data: ")[1]) for each in found[-2:])
    assert (error["type"], error["code"]) == ("error", "engine_failed")
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"]["code"] == "server_error"
    kept = orjson.loads((await get(service, failed["response"]["id"])).data)
    assert kept["status"] == "failed"
    call = service.create(previous_response_id=kept["id"])
    assert await refusal(call.read()) == ("INVALID_ARGUMENT", "previous_response_id")


async def test_refusals_of_the_node_reach_the_caller(service: Jobs, engine: FakeEngine) -> None:
    async def refuse(reply: Any) -> None:
        error = {"message": "Too long.", "type": "x", "param": "messages[0]"}
        await reply.json({"error": error}, 400)

    engine.script = refuse
    for stream in (True, False):
        call = service.create(stream=stream)
        assert await refusal(call.read()) == ("ENGINE_REJECTED", "input")
    assert await refusal(service.create(model="gpt-9").read()) == ("MODEL_NOT_FOUND", "model")
    # The model that auth has checked is the one that answers.
    call = service.create(of(model="another"))
    assert await refusal(call.read()) == ("INVALID_ARGUMENT", "model")


async def test_guardrails_hold(service: Jobs, engine: FakeEngine) -> None:
    wanted = header.write(
        key_service_pb2.Guardrails(
            blocked_patterns=["zebra"], redact=[key_service_pb2.REDACTION_EMAIL_ADDRESSES]
        )
    )
    guarded = of(guardrails=wanted)
    call = service.create(guarded, input="Mail jane@example.com.")
    await call.read()
    assert dict(await call.initial_metadata())[headers.REDACTIONS] == "1"
    told = orjson.loads(engine.requests[-1].body)["messages"]
    assert told == [{"role": "user", "content": "Mail <EMAIL_ADDRESS>."}]
    call = service.create(guarded, input="A zebra.")
    assert await refusal(call.read()) == ("CONTENT_BLOCKED", "input")
    assert len(engine.requests) == 1


async def test_an_answer_that_cannot_be_kept_is_given(
    postgres_url: str, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise StoreUnavailableError("away")

    async with jobs(postgres_url, node.address) as service:
        monkeypatch.setattr(ResponseStore, "put", away)
        made = await service.created()
        assert (made["status"], made["store"]) == ("completed", False)
        assert made["model"] == MODEL


async def test_a_conversation_that_is_too_long(service: Jobs, engine: FakeEngine) -> None:
    text = "x" * (9 * 1024 * 1024)
    made = await service.created(input=text)
    call = service.create(input=text, previous_response_id=made["id"])
    assert await refusal(call.read()) == ("REQUEST_TOO_LARGE", "previous_response_id")
    assert len(engine.requests) == 1
