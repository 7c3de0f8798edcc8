"""Responses, files and batches against the whole stack, with the official SDKs."""

import json
import socket
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from e2e.mesh import CHAT, EMBED, Mesh
from e2e.test_cancel import IDLE_S, running
from e2e.test_limits import Key

BRIEF = "You are a helpful assistant. Reply in one short English sentence."
FRANCE = "What is the capital of France?"


@pytest.fixture
def strict(mesh: Mesh) -> Iterator[openai.OpenAI]:
    """The SDK with its own validation of all answers."""
    with openai.OpenAI(
        base_url=f"{mesh.url}/v1",
        api_key=mesh.admin_key,
        max_retries=0,
        timeout=60,
        _strict_response_validation=True,
    ) as client:
        yield client


def line(custom_id: str, url: str = "/v1/chat/completions", **body: Any) -> bytes:
    body = {"model": CHAT, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).encode()


def chat_line(number: int, **body: Any) -> bytes:
    messages = [{"role": "user", "content": f"Say {number}."}]
    return line(str(number), messages=messages, max_tokens=4, **body)


def batch_of(client: openai.OpenAI, text: bytes, endpoint: Any = "/v1/chat/completions") -> str:
    file = client.files.create(file=("in.jsonl", text), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"a": "b"}
    )
    assert (made.status, made.metadata) == ("validating", {"a": "b"})
    return made.id


def ended(client: openai.OpenAI, batch_id: str, limit_s: float = 90) -> Any:
    began = time.monotonic()
    while True:
        try:
            batch = client.batches.retrieve(batch_id)
            if batch.status not in ("validating", "in_progress", "finalizing", "cancelling"):
                return batch
        except openai.APIStatusError as error:  # while the service is away
            assert error.status_code == 503
        assert time.monotonic() - began < limit_s, "the batch did not end"
        time.sleep(0.2)


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [json.loads(each) for each in client.files.content(file_id).text.splitlines()]


def events_of(mesh: Mesh, request_ids: set[str]) -> list[dict[str, Any]]:
    with mesh.http() as http:
        found = http.get("/mesh/v1/usage/events", params={"page_size": 500}).json()["events"]
    return [event for event in found if event["request_id"] in request_ids]


def test_a_conversation(strict: openai.OpenAI, mesh: Mesh) -> None:
    raw = strict.responses.with_raw_response.create(
        model=CHAT, instructions=BRIEF, input=FRANCE, temperature=0
    )
    first = raw.parse()
    assert "Paris" in first.output_text and first.status == "completed"
    assert raw.headers["x-mesh-node"] in ("node-1", "node-2")
    assert first.usage is not None and first.usage.output_tokens > 0
    with strict.responses.stream(
        model=CHAT, instructions=BRIEF, input=FRANCE, temperature=0, previous_response_id=first.id
    ) as stream:
        events = [event.type for event in stream]
        second = stream.get_final_response()
    assert (events[0], events[-1]) == ("response.created", "response.completed")
    assert second.usage is not None and second.usage.input_tokens > first.usage.input_tokens
    assert strict.responses.retrieve(first.id) == first
    roles = [getattr(item, "role", "") for item in strict.responses.input_items.list(second.id)]
    assert roles == ["user", "assistant", "user"]
    # Each is in the ledger once, with the node that answered.
    (event,) = mesh.wait("ledger", lambda: events_of(mesh, {raw.headers["x-request-id"]}))
    assert event["node_id"] == raw.headers["x-mesh-node"]
    assert event["prompt_tokens"] == first.usage.input_tokens
    strict.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError) as caught:
        strict.responses.create(model=CHAT, input="x", previous_response_id=first.id)
    assert caught.value.param == "previous_response_id"


def test_structured_output(strict: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    }
    made = strict.responses.create(
        model=CHAT,
        input=FRANCE,
        temperature=0,
        max_output_tokens=60,
        text={"format": {"type": "json_schema", "name": "city", "schema": schema, "strict": True}},
    )
    assert json.loads(made.output_text).keys() == {"city"}


def test_the_sdk_for_javascript(mesh: Mesh) -> None:
    done = subprocess.run(
        ["node", "tests/clients/responses_client.mjs", f"{mesh.url}/v1", mesh.admin_key, CHAT],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert "Paris" in got["first"] and got["streamed"]
    assert (got["last"], got["same"]) == ("response.completed", True)
    assert got["items"] == ["user", "assistant", "user"]
    assert got["refused"] == {"status": 404, "code": "not_found", "param": "response_id"}


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"input": "x"}, 400, "invalid_argument", "model"),
        ({"model": "gpt-9", "input": "x"}, 404, "model_not_found", "model"),
        ({"model": CHAT}, 400, "invalid_argument", "input"),
        ({"model": CHAT, "input": "x", "background": True}, 400, "unsupported", "background"),
        ({"model": CHAT, "input": [{"role": "x"}]}, 400, "invalid_argument", "input[0].role"),
        ({"model": EMBED, "input": "x"}, 400, "invalid_argument", "model"),
    ],
)
def test_bad_input(mesh: Mesh, body: Any, status: int, code: str, param: str) -> None:
    with mesh.http() as http:
        for stream in (False, True):
            reply = http.post("/v1/responses", json={**body, "stream": stream})
            error = reply.json()["error"]
            assert (reply.status_code, error["code"], error["param"]) == (status, code, param)


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_stops_the_engine(mesh: Mesh, stream: bool) -> None:
    mesh.wait("idle engines", lambda: running() == 0)
    asked = {"model": CHAT, "input": "Write a long story.", "max_output_tokens": 4000}
    body = json.dumps({**asked, "ignore_eos": True, "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", mesh.port)) as connection:
        connection.sendall(
            b"POST /v1/responses HTTP/1.1\r\nhost: mesh\r\ncontent-type: application/json\r\n"
            b"authorization: Bearer %s\r\ncontent-length: %d\r\n\r\n%s"
            % (mesh.admin_key.encode(), len(body), body)
        )
        mesh.wait("a running request", lambda: running() == 1)
        time.sleep(0.5)
    began = time.monotonic()
    mesh.wait("idle engines", lambda: running() == 0, IDLE_S)
    print(f"stream={stream}: engine idle {1000 * (time.monotonic() - began):.0f} ms after hang-up")


def test_another_tenant_sees_nothing(mesh: Mesh, client: openai.OpenAI) -> None:
    made = client.responses.create(model=CHAT, input="Hi", max_output_tokens=2)
    file = client.files.create(file=("a", chat_line(1)), purpose="batch")
    name = f"jobs-{uuid.uuid4().hex[:8]}"
    with mesh.http() as admin:
        admin.post("/mesh/v1/tenants", json={"tenant": {"name": name}, "name": name})
        wanted = {"display_name": name, "role": "ROLE_USER", "tenant": name}
        reply = admin.post("/mesh/v1/keys", json=wanted)
        reply.raise_for_status()
    with mesh.openai(reply.json()["secret"]) as other:
        for act in (
            lambda: other.responses.retrieve(made.id),
            lambda: other.responses.delete(made.id),
            lambda: other.responses.create(model=CHAT, input="x", previous_response_id=made.id),
            lambda: other.files.content(file.id),
            lambda: other.files.delete(file.id),
        ):
            with pytest.raises(openai.NotFoundError):
                act()
        assert list(other.files.list()) == []
    assert client.responses.retrieve(made.id).id == made.id


def test_a_batch(strict: openai.OpenAI, mesh: Mesh) -> None:
    text = b"\n".join([*(chat_line(n) for n in range(12)), b"{bad", chat_line(99, model="gpt-9")])
    batch = ended(strict, batch_of(strict, text))
    assert batch.status == "completed"
    assert strict.batches.list(limit=1).data == [batch]
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (14, 12, 2)
    done = lines_of(strict, batch.output_file_id)
    assert [each["custom_id"] for each in done] == [str(number) for number in range(12)]
    bad, unknown = lines_of(strict, batch.error_file_id)
    assert bad["error"]["code"] == "invalid_json_line"
    assert unknown["response"]["status_code"] == 404
    ids = {each["response"]["request_id"] for each in done}
    mesh.wait("ledger", lambda: len(events_of(mesh, ids)) == 12)
    tokens = {each["response"]["request_id"]: each["response"]["body"]["usage"] for each in done}
    for event in events_of(mesh, ids):
        assert event["completion_tokens"] == tokens[event["request_id"]]["completion_tokens"]


def test_a_batch_of_vectors(strict: openai.OpenAI) -> None:
    url = "/v1/embeddings"
    text = b"\n".join(line(str(n), url, model=EMBED, input=f"text {n}") for n in range(5))
    batch = ended(strict, batch_of(strict, text, url))
    done = lines_of(strict, batch.output_file_id)
    assert [len(each["response"]["body"]["data"][0]["embedding"]) for each in done] == [384] * 5


def test_cancelling(strict: openai.OpenAI, mesh: Mesh) -> None:
    text = b"\n".join(chat_line(n, ignore_eos=True) for n in range(30))
    text = text.replace(b'"max_tokens": 4', b'"max_tokens": 2000')
    batch_id = batch_of(strict, text)
    mesh.wait("lines that run", lambda: running() > 0)
    assert strict.batches.cancel(batch_id).status == "cancelling"
    assert ended(strict, batch_id).status == "cancelled"
    mesh.wait("idle engines", lambda: running() == 0, IDLE_S)


def test_a_killed_service_runs_no_line_twice(mesh: Mesh) -> None:
    with mesh.http() as admin:
        key = Key(mesh, admin)
        key.limit(concurrent_requests=100)
        with key.openai() as client:
            killed_in_the_middle(mesh, client)
        # Envoy told auth of the lines that were cut off; what was asked for and not begun is rare.
        mesh.wait("places", lambda: key.used("concurrent_requests") <= 1)
        admin.delete("/mesh/v1/limits", params={"scope.key_id": key.key_id})
        admin.delete(f"/mesh/v1/keys/{key.key_id}")


def killed_in_the_middle(mesh: Mesh, strict: openai.OpenAI) -> None:
    total = 40
    # So long that most of them are still to come when some are done.
    text = b"\n".join(chat_line(n, ignore_eos=True) for n in range(total))
    batch_id = batch_of(strict, text.replace(b'"max_tokens": 4', b'"max_tokens": 8'))
    mesh.wait("some lines", lambda: strict.batches.retrieve(batch_id).request_counts.completed > 5)
    mesh.kill("jobs")
    batch = ended(strict, batch_id)
    counts = batch.request_counts
    assert batch.status == "completed"
    assert (counts.total, counts.completed + counts.failed) == (total, total)
    done = lines_of(strict, batch.output_file_id)
    lost = lines_of(strict, batch.error_file_id)
    assert sorted(int(each["custom_id"]) for each in done + lost) == list(range(total))
    # At most what ran when it was killed, and it says so.
    assert {each["error"]["code"] for each in lost} <= {"outcome_unknown"}
    assert 0 < len(lost) <= 8
    ids = {each["id"].removeprefix("batch_req_") for each in done + lost}
    mesh.wait("ledger", lambda: len(events_of(mesh, ids)) >= len(done))
    counted = Counter(event["request_id"] for event in events_of(mesh, ids))
    assert set(counted.values()) == {1}


def test_large_files_pass(strict: openai.OpenAI) -> None:
    content = bytes(range(256)) * (20 * 4096)  # above the front door's 16 MiB for other bodies
    file = strict.files.create(file=("big.jsonl", content), purpose="batch")
    assert file.bytes == len(content)
    assert strict.files.retrieve(file.id) == file
    assert file.id in [each.id for each in strict.files.list(limit=5).data]
    assert strict.files.content(file.id).read() == content
    assert strict.files.delete(file.id).deleted


def test_a_file_that_is_too_large(mesh: Mesh) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(110):
            yield bytes(1024 * 1024)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    with mesh.http() as http:
        try:
            reply = http.post("/v1/files", content=endless(), headers=headers)
        except httpx.WriteError:  # the answer overtook the body
            return
    assert reply.status_code == 413


def test_limits_hold_and_are_settled(mesh: Mesh) -> None:
    with mesh.http() as admin:
        key = Key(mesh, admin)
        key.limit(requests_per_minute=3, tokens_per_day=100_000)
        with key.openai() as client:
            taken = 0
            for _ in range(2):
                made = client.responses.create(model=CHAT, input="Hi", max_output_tokens=4)
                assert made.usage is not None
                taken += made.usage.total_tokens
            mesh.wait("settlement", lambda: key.used("tokens_per_day") == taken)
            with pytest.raises(openai.RateLimitError) as caught:
                for _ in range(2):
                    made = client.responses.create(model=CHAT, input="Hi", max_output_tokens=4)
                    taken += made.usage.total_tokens
            assert int(caught.value.response.headers["retry-after"]) > 0
            # What lines take counts in a day, and a day that is used up holds them back.
            # Envoy frees their places: else the second would wait for a quarter of an hour.
            key.limit(tokens_per_day=100_000, concurrent_requests=1)
            batch = ended(client, batch_of(client, b"\n".join(chat_line(n) for n in range(3))))
            usages = [
                line["response"]["body"]["usage"]["total_tokens"]
                for line in lines_of(client, batch.output_file_id)
            ]
            wanted = taken + sum(usages)
            mesh.wait("settlement", lambda: key.used("tokens_per_day") == wanted)
            mesh.wait("its place", lambda: key.used("concurrent_requests") == 0)
            key.limit(tokens_per_day=wanted)
            held = batch_of(client, chat_line(4))
            time.sleep(2)
            assert client.batches.retrieve(held).request_counts.completed == 0
            key.limit(tokens_per_day=100_000)
            assert ended(client, held).request_counts.completed == 1
        admin.delete("/mesh/v1/limits", params={"scope.key_id": key.key_id})
        admin.delete(f"/mesh/v1/keys/{key.key_id}")
