"""Files and batches over real PostgreSQL: a line runs at most once, whatever happens."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import orjson
import pytest
from google.api import httpbody_pb2

from inference_node import ANSWER, HELLO, MODEL, FakeEngine, FakeMesh, Node, until
from infermesh.auth.v1 import key_service_pb2
from infermesh.errors.v1 import errors_pb2
from infermesh.jobs.v1 import batch_service_pb2 as pb
from infermesh.jobs.v1 import file_service_pb2 as file_pb
from jobs_world import FakeAuth, Jobs, jobs, line, multipart, of, refusal
from services.jobs.batches import callers, store
from services.jobs.batches.work import Work
from services.kit.database import make_engine
from services.kit.errors import MeshError, StoreUnavailableError
from services.kit.guardrails import header

_R = errors_pb2.ErrorReason
MAX_BYTES = 4 * 1024 * 1024


@pytest.fixture
async def auth() -> AsyncIterator[FakeAuth]:
    fake = FakeAuth()
    async with fake.serving():
        yield fake


@pytest.fixture
async def service(postgres_url: str, node: Node, auth: FakeAuth) -> AsyncIterator[Jobs]:
    async with jobs(
        postgres_url,
        node.address,
        auth_address=auth.address,
        file_max_bytes=MAX_BYTES,
        batch_lease_s=1,
        batch_concurrency=4,
        batch_max_lines=200,
    ) as service:
        yield service


def asked(engine: FakeEngine) -> list[str]:
    return [orjson.loads(each.body)["messages"][0]["content"] for each in engine.requests]


async def test_files_are_kept_in_pieces_and_scoped(service: Jobs) -> None:
    text = bytes(range(256)) * 10_000
    file = await service.uploaded(text)
    assert (file["bytes"], file["filename"], file["purpose"]) == (len(text), "in.jsonl", "batch")
    for metadata in (of("other"), of(project="p")):
        for name, kind in (
            ("GetFile", file_pb.GetFileRequest),
            ("DeleteFile", file_pb.DeleteFileRequest),
        ):
            call = getattr(service.files, name)(kind(file_id=file["id"]), metadata=metadata)
            assert await refusal(call) == ("NOT_FOUND", "file_id")
        request = file_pb.GetFileContentRequest(file_id=file["id"])
        call = service.files.GetFileContent(request, metadata=metadata)
        assert await refusal(call.read()) == ("NOT_FOUND", "file_id")
    request = file_pb.GetFileContentRequest(file_id=file["id"])
    found = [m.data async for m in service.files.GetFileContent(request, metadata=of())]
    assert b"".join(found) == text and len(found) == 3
    more = [await service.uploaded(b"x") for _ in range(2)]
    listing = file_pb.ListFilesRequest(limit=2)
    page = orjson.loads((await service.files.ListFiles(listing, metadata=of())).data)
    assert [each["id"] for each in page["data"]] == [more[1]["id"], more[0]["id"]]
    assert page["has_more"] is True
    listing.after = page["last_id"]
    page = orjson.loads((await service.files.ListFiles(listing, metadata=of())).data)
    assert page["data"][0] == file
    await service.files.DeleteFile(file_pb.DeleteFileRequest(file_id=file["id"]), metadata=of())
    call = service.files.GetFile(file_pb.GetFileRequest(file_id=file["id"]), metadata=of())
    assert await refusal(call) == ("NOT_FOUND", "file_id")


@pytest.mark.parametrize(
    ("form", "reason", "param"),
    [
        (multipart(b"x", purpose="assistants"), "UNSUPPORTED", "purpose"),
        (multipart(b""), "INVALID_ARGUMENT", "file"),
        (multipart(b"x" * (MAX_BYTES + 1)), "REQUEST_TOO_LARGE", "file"),
        (multipart(b"x", **{"expires_after[seconds]": "9"}), "INVALID_ARGUMENT", None),
        (httpbody_pb2.HttpBody(content_type="application/json"), "INVALID_ARGUMENT", "file"),
        (
            httpbody_pb2.HttpBody(content_type="multipart/form-data; boundary=x", data=b"--x\r\n"),
            "INVALID_ARGUMENT",
            "file",
        ),
        (
            httpbody_pb2.HttpBody(content_type="multipart/form-data; boundary=x", data=b"nothing"),
            "INVALID_ARGUMENT",
            "file",
        ),
    ],
)
async def test_forms_that_are_refused(
    service: Jobs, form: httpbody_pb2.HttpBody, reason: str, param: str | None
) -> None:
    found = await refusal(service.files.CreateFile(iter([form]), metadata=of()))
    assert found == (reason, param or "expires_after[seconds]")


async def test_one_bad_line_fails_that_line_only(
    service: Jobs, engine: FakeEngine, mesh: FakeMesh
) -> None:
    good = [line(f"good-{number}") for number in range(30)]
    bad = [
        b"{broken",
        b"[]",
        orjson.dumps({"method": "POST"}),
        line("good-0"),
        orjson.dumps({"custom_id": "url", "url": "/v1/embeddings", "body": {"model": "m"}}),
        line("stream", stream=True),
        line("unknown", model="gpt-9"),
    ]
    batch = await service.batch(b"\n".join([*good[:9], *bad, b"", *good[9:]]), metadata={"a": "b"})
    assert (batch["status"], batch["metadata"]) == ("validating", {"a": "b"})
    batch = await service.ended(batch["id"])
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 37, "completed": 30, "failed": 7}
    done = await service.content(batch["output_file_id"])
    assert [each["custom_id"] for each in done] == [f"good-{number}" for number in range(30)]
    assert done[0]["response"]["status_code"] == 200
    assert done[0]["response"]["body"]["choices"][0]["message"]["content"] == "hello"
    failed = await service.content(batch["error_file_id"])
    assert [each["error"] and each["error"]["code"] for each in failed] == [
        *("invalid_json_line", "invalid_json_line", "invalid_custom_id"),
        *("duplicate_custom_id", "invalid_url", "invalid_request", None),
    ]
    assert failed[-1]["response"]["status_code"] == 404
    # The engine saw each once, and does not see the mesh's own priority.
    assert sorted(asked(engine)) == sorted(f"good-{number}" for number in range(30))
    assert "priority" not in orjson.loads(engine.requests[0].body)
    await until(lambda: len(mesh.events) == 30)
    ids = {each["response"]["request_id"] for each in done}
    assert {event.request_id for event in mesh.events} == ids
    assert {(event.key_id, event.tenant) for event in mesh.events} == {("k", "t")}


async def test_no_more_run_at_a_time_than_allowed(service: Jobs, engine: FakeEngine) -> None:
    running = most = 0

    async def slow(reply: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        await reply.stream(ANSWER)

    engine.script = slow
    batch = await service.batch(b"\n".join(line(str(number)) for number in range(20)))
    assert (await service.ended(batch["id"]))["request_counts"]["completed"] == 20
    assert 1 < most <= 4


async def test_a_full_mesh_is_waited_for(service: Jobs, engine: FakeEngine) -> None:
    refusals = 3

    async def full(reply: Any) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            await reply.json({"error": {"message": "full"}}, 429)
        else:
            await reply.stream(ANSWER)

    engine.script = full
    batch = await service.batch(line("a"))
    # The engine says nothing of when, and the node then says five seconds.
    async with asyncio.timeout(30):
        while refusals == 3:
            await asyncio.sleep(0.05)
    refusals = 0
    batch = await service.ended(batch["id"])
    assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
    assert asked(engine) == ["a", "a"]


async def test_cancelling_stops_the_engine_and_begins_nothing(
    service: Jobs, engine: FakeEngine
) -> None:
    async def endless(reply: Any) -> None:
        await reply.start()
        await asyncio.sleep(30)

    engine.script = endless
    batch = await service.batch(b"\n".join(line(str(number)) for number in range(10)))
    await until(lambda: len(engine.requests) == 4)
    request = pb.CancelBatchRequest(batch_id=batch["id"])
    answer = await service.batches.CancelBatch(request, metadata=of())
    assert orjson.loads(answer.data)["status"] == "cancelling"
    batch = await service.ended(batch["id"])
    assert (batch["status"], batch["output_file_id"]) == ("cancelled", None)
    assert engine.hung_up.is_set()
    codes = [each["error"]["code"] for each in await service.content(batch["error_file_id"])]
    assert codes == ["batch_cancelled"] * 10
    assert len(engine.requests) == 4


async def test_a_key_that_may_not_runs_nothing(
    service: Jobs, engine: FakeEngine, auth: FakeAuth
) -> None:
    auth.keys.clear()
    file = await service.uploaded(line("a"))
    body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
    request = httpbody_pb2.HttpBody(data=orjson.dumps({**body, "completion_window": "24h"}))
    call = service.batches.CreateBatch(request, metadata=of())
    assert (await refusal(call))[0] == "UNSUPPORTED"
    auth.keys.add("k")
    auth.refusals["gone"] = MeshError(_R.ERROR_REASON_INVALID_API_KEY, "no")
    auth.refusals["other"] = MeshError(_R.ERROR_REASON_MODEL_NOT_FOUND, "no", param="model")
    # No wait makes room for what is larger than the limit alone.
    large = {"limit": "tokens_per_minute", "allowed": "10"}
    auth.refusals["large"] = MeshError(_R.ERROR_REASON_RATE_LIMIT_EXCEEDED, "no", metadata=large)
    text = b"\n".join(line(model, model=model) for model in auth.refusals)
    batch = await service.ended((await service.batch(text))["id"])
    failed = await service.content(batch["error_file_id"])
    assert [each["response"]["status_code"] for each in failed] == [401, 404, 429]
    assert len(auth.asked) == 3 and engine.requests == []


async def test_auth_is_told_what_a_line_asks_for(
    service: Jobs, engine: FakeEngine, auth: FakeAuth, mesh: FakeMesh
) -> None:
    auth.headers = {"x-mesh-reserved": "1", "x-mesh-caching": "off"}
    asked_for = line("a", max_tokens=7, n=2, fallback_models=["f"])
    await service.ended((await service.batch(asked_for))["id"])
    [said] = auth.asked
    assert (said.key_id, said.model, list(said.fallback_models)) == ("k", MODEL, ["f"])
    assert (said.max_tokens, said.answer_count) == (7, 2)
    assert len(asked_for) - 80 < said.prompt_bytes < len(asked_for)
    assert said.rpc == "/infermesh.inference.v1.OpenAIService/CreateChatCompletion"
    await until(lambda: mesh.events)
    assert mesh.events[0].reserved and mesh.events[0].request_id == said.request_id


async def test_a_limit_without_room_holds_the_batch_back_and_no_other(
    service: Jobs, engine: FakeEngine, auth: FakeAuth
) -> None:
    auth.refusals["full"] = MeshError(
        _R.ERROR_REASON_INSUFFICIENT_QUOTA, "full", metadata={"allowed": "9"}, retry_after_s=2
    )
    auth.refusals["stopped"] = MeshError(
        _R.ERROR_REASON_INSUFFICIENT_QUOTA, "full", metadata={"allowed": "0.00"}
    )
    full = await service.batch(b"\n".join(line(str(n), model="full") for n in range(50)))
    stopped = await service.batch(line("a", model="stopped"))
    other = await service.ended((await service.batch(line("b")))["id"])
    assert other["request_counts"]["completed"] == 1
    await asyncio.sleep(1)
    # Those that ran at the same time asked; of the others none did.
    models = [each.model for each in auth.asked]
    assert 1 <= models.count("full") <= 4 and models.count("stopped") == 1
    auth.refusals.clear()
    full = await service.ended(full["id"])
    assert full["request_counts"]["failed"] == 50  # no node serves it: they did run
    assert (await service.batch_now(stopped["id"]))["status"] == "in_progress"
    cancel = pb.CancelBatchRequest(batch_id=stopped["id"])
    await service.batches.CancelBatch(cancel, metadata=of())


async def test_while_auth_cannot_tell_nothing_runs(
    service: Jobs, engine: FakeEngine, auth: FakeAuth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "_AWAY_S", 0.2)
    auth.refusals[MODEL] = MeshError(_R.ERROR_REASON_STORE_UNAVAILABLE, "away")
    batch = await service.batch(line("a"))
    await until(lambda: len(auth.asked) > 1)
    assert engine.requests == []
    auth.refusals.clear()
    assert (await service.ended(batch["id"]))["request_counts"]["completed"] == 1
    # Each try has an id of its own: what the first may have reserved is not the last one's.
    assert len({each.request_id for each in auth.asked}) == len(auth.asked)


async def test_guardrails_of_the_key_hold(
    service: Jobs, engine: FakeEngine, auth: FakeAuth
) -> None:
    guardrails = key_service_pb2.Guardrails(blocked_patterns=["zebra"])
    auth.headers["x-mesh-guardrails"] = header.write(guardrails)
    batch = await service.batch(line("zebra") + b"\n" + line("horse"))
    batch = await service.ended(batch["id"])
    (failed,) = await service.content(batch["error_file_id"])
    assert failed["response"]["body"]["error"]["code"] == "content_blocked"
    assert asked(engine) == ["horse"]


@pytest.mark.parametrize("text", [b"\n\n", b"\n".join(line(str(n)) for n in range(201))])
async def test_inputs_that_are_none(service: Jobs, engine: FakeEngine, text: bytes) -> None:
    batch = await service.ended((await service.batch(text))["id"])
    assert batch["status"] == "failed"
    assert batch["errors"]["data"][0]["code"] in ("empty_file", "too_many_lines")
    assert engine.requests == []


@pytest.mark.parametrize(
    ("fields", "reason", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "UNSUPPORTED", "endpoint"),
        ({"completion_window": "1h"}, "UNSUPPORTED", "completion_window"),
        ({"input_file_id": "file-none"}, "NOT_FOUND", "input_file_id"),
        ({"input_file_id": 3}, "INVALID_ARGUMENT", "input_file_id"),
        ({"metadata": {"a": 1}}, "INVALID_ARGUMENT", "metadata.a"),
    ],
)
async def test_batches_that_are_refused(
    service: Jobs, fields: dict[str, Any], reason: str, param: str
) -> None:
    assert await refusal(service.batch(line("a"), **fields)) == (reason, param)


async def test_others_see_no_batch(service: Jobs) -> None:
    batch = await service.batch(line("a"))
    for metadata in (of("other"), of(project="p")):
        for name, kind in (
            ("GetBatch", pb.GetBatchRequest),
            ("CancelBatch", pb.CancelBatchRequest),
        ):
            call = getattr(service.batches, name)(kind(batch_id=batch["id"]), metadata=metadata)
            assert await refusal(call) == ("NOT_FOUND", "batch_id")
        answer = await service.batches.ListBatches(pb.ListBatchesRequest(), metadata=metadata)
        assert orjson.loads(answer.data)["data"] == []
    assert (await service.ended(batch["id"]))["request_counts"]["completed"] == 1


async def test_what_a_dead_worker_ran_is_not_run_again(
    postgres_url: str, node: Node, auth: FakeAuth, engine: FakeEngine
) -> None:
    """A worker that claims lines and is never heard of again, as after a kill."""
    more = {"auth_address": auth.address, "batch_lease_s": 1}
    hold = asyncio.Event()

    async def held(reply: Any) -> None:
        await hold.wait()
        await reply.stream(ANSWER)

    engine.script = held
    database = make_engine(postgres_url)
    dead = Work(database, "dead", lease_s=0.5)
    try:
        async with jobs(postgres_url, node.address, batch_concurrency=1, **more) as service:
            batch = await service.batch(b"\n".join(line(str(number)) for number in range(50)))
            await until(lambda: engine.requests)
            await dead.beat()
            taken = await dead.claim(3)
            assert [claim.number for claim in taken] == [2, 3, 4]
            hold.set()
            batch = await service.ended(batch["id"])
            assert batch["request_counts"] == {"total": 50, "completed": 47, "failed": 3}
            lost = await service.content(batch["error_file_id"])
            assert [each["custom_id"] for each in lost] == ["1", "2", "3"]
            assert {each["error"]["code"] for each in lost} == {"outcome_unknown"}
            assert not {"1", "2", "3"} & set(asked(engine))
            # What the dead one says after all comes too late.
            await dead.finish(taken[0], b"{}", is_ok=True)
            assert await service.batch_now(batch["id"]) == batch
    finally:
        await database.dispose()


async def test_what_has_not_begun_runs_after_a_restart(
    postgres_url: str, node: Node, auth: FakeAuth, engine: FakeEngine
) -> None:
    more = {"auth_address": auth.address, "batch_lease_s": 1, "drain_s": 0}
    hold = asyncio.Event()

    async def held(reply: Any) -> None:
        if len(engine.requests) > 2:
            await hold.wait()
        await reply.stream(ANSWER)

    engine.script = held
    async with jobs(postgres_url, node.address, batch_concurrency=1, **more) as service:
        batch = await service.batch(b"\n".join(line(str(number)) for number in range(6)))
        await until(lambda: len(engine.requests) == 3)
    hold.set()
    async with jobs(postgres_url, node.address, **more) as service:
        batch = await service.ended(batch["id"])
        assert batch["request_counts"] == {"total": 6, "completed": 5, "failed": 1}
        (lost,) = await service.content(batch["error_file_id"])
        assert (lost["custom_id"], lost["error"]["code"]) == ("2", "interrupted")
    assert sorted(asked(engine)) == [str(number) for number in range(6)]


async def test_a_batch_out_of_time_ends(
    service: Jobs, engine: FakeEngine, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "WINDOW_S", 3)

    async def endless(reply: Any) -> None:
        await reply.start()
        for _ in range(150):
            await reply.send(HELLO)
            await asyncio.sleep(0.2)

    engine.script = endless
    batch = await service.batch(b"\n".join(line(str(number)) for number in range(6)))
    batch = await service.ended(batch["id"])
    assert batch["status"] == "expired"
    codes = [each["error"]["code"] for each in await service.content(batch["error_file_id"])]
    assert codes == ["batch_expired"] * 6
    assert len(engine.requests) == 4


async def test_ids_that_none_can_have(service: Jobs) -> None:
    for name in ("\0", "é", "a\nb"):
        for call in (
            service.batches.GetBatch(pb.GetBatchRequest(batch_id=name), metadata=of()),
            service.batches.CancelBatch(pb.CancelBatchRequest(batch_id=name), metadata=of()),
            service.batches.ListBatches(pb.ListBatchesRequest(after=name), metadata=of()),
            service.files.GetFile(file_pb.GetFileRequest(file_id=name), metadata=of()),
            service.files.DeleteFile(file_pb.DeleteFileRequest(file_id=name), metadata=of()),
            service.files.ListFiles(file_pb.ListFilesRequest(after=name), metadata=of()),
            service.create(previous_response_id=name).read(),
            service.batch(line("a"), input_file_id=name),
        ):
            assert (await refusal(call))[0] == "NOT_FOUND"
    batch = await service.ended((await service.batch(line("a\0b") + b"\n" + line("c")))["id"])
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    listing = file_pb.ListFilesRequest(purpose="\0")
    assert orjson.loads((await service.files.ListFiles(listing, metadata=of())).data)["data"] == []


async def test_reading_an_input_goes_on_once_the_store_is_back(
    service: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, left = Work.add, 2

    async def away(*args: Any) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise StoreUnavailableError("away")
        await add(*args)

    monkeypatch.setattr(Work, "add", away)
    batch = await service.ended((await service.batch(line("a")))["id"])
    assert batch["request_counts"]["completed"] == 1 and left < 0


async def test_an_input_that_cannot_be_read_keeps_no_other_waiting(
    service: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, left = Work.add, 1

    async def broken(*args: Any) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise LookupError
        await add(*args)

    monkeypatch.setattr(Work, "add", broken)
    first, second = [(await service.batch(line(name)))["id"] for name in "ab"]
    assert (await service.ended(first))["status"] == "failed"
    assert (await service.ended(second))["status"] == "completed"


async def test_it_waits_while_auth_is_away(postgres_url: str, node: Node) -> None:
    async with jobs(postgres_url, node.address) as service:
        call = service.batch(line("a"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
