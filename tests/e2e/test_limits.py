"""Limits on the real mesh: what callers see of them, and that they count the truth."""

import concurrent.futures
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import openai
import pytest
from google.rpc import error_details_pb2, status_pb2

from e2e.mesh import CHAT, EMBED, Mesh
from infermesh.inference.v1 import inference_service_pb2 as ib
from infermesh.inference.v1 import inference_service_pb2_grpc

LONG = "Count from one to one thousand in words, slowly."


class Key:
    """A key of a test's own, and its limits."""

    def __init__(self, mesh: Mesh, admin: httpx.Client) -> None:
        self.mesh = mesh
        self._admin = admin
        made = admin.post("/mesh/v1/keys", json={"display_name": "limits", "tenant": "limits"})
        made.raise_for_status()
        self.key_id: str = made.json()["key"]["key_id"]
        self.secret: str = made.json()["secret"]

    def limit(self, **limits: Any) -> None:
        body = {"limits": {"scope": {"key_id": self.key_id}, **limits}}
        self._admin.put("/mesh/v1/limits", json=body).raise_for_status()

    def used(self, limit: str) -> float:
        query = {"scope.key_id": self.key_id}
        state = self._admin.get("/mesh/v1/limits:state", params=query).raise_for_status().json()
        [found] = [each for each in state["uses"] if each["limit"] == limit]
        return float(found["used"])

    def openai(self, max_retries: int = 0) -> openai.OpenAI:
        url = f"{self.mesh.url}/v1"
        return openai.OpenAI(base_url=url, api_key=self.secret, max_retries=max_retries, timeout=60)


@pytest.fixture
def admin(mesh: Mesh) -> Iterator[httpx.Client]:
    with mesh.http() as client:
        yield client


@pytest.fixture
def key(mesh: Mesh, admin: httpx.Client) -> Iterator[Key]:
    made = Key(mesh, admin)
    yield made
    admin.delete("/mesh/v1/limits", params={"scope.key_id": made.key_id})
    admin.delete(f"/mesh/v1/keys/{made.key_id}")


def chat(client: openai.OpenAI, text: str = "Hi", **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=CHAT, messages=messages, **fields)


def until(condition: Any, limit_s: float) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "it did not come to pass"
        time.sleep(0.01)
    return time.monotonic() - began


def test_the_sdk_sees_headers_and_then_a_rate_limit_error(key: Key) -> None:
    key.limit(requests_per_minute=2, tokens_per_minute=5000)
    with key.openai() as client:
        raw = client.chat.completions.with_raw_response
        messages: Any = [{"role": "user", "content": "Hi"}]
        first = raw.create(model=CHAT, messages=messages, max_tokens=4)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-reset-requests"] in ("59s", "1m0s")
        assert first.headers["x-ratelimit-limit-tokens"] == "5000"
        assert 4900 < int(first.headers["x-ratelimit-remaining-tokens"]) < 5000

        stream = raw.create(model=CHAT, messages=messages, max_tokens=4, stream=True)
        assert stream.headers["x-ratelimit-remaining-requests"] == "0"
        assert list(stream.parse())

        with pytest.raises(openai.RateLimitError) as caught:
            chat(client, max_tokens=4)
    error = caught.value
    assert (error.status_code, error.code, error.type) == (
        429,
        "rate_limit_exceeded",
        "rate_limit_error",
    )
    assert key.key_id in error.message
    assert "2 calls in a minute, 2 are used" in error.message
    assert 50 <= int(error.response.headers["retry-after"]) <= 60
    assert error.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-mesh-node" not in error.response.headers


def test_a_grpc_caller_gets_resource_exhausted(key: Key) -> None:
    key.limit(tokens_per_minute=100)
    message = ib.ChatMessage(role=ib.CHAT_ROLE_USER, content=[ib.ContentPart(text="Hi")])
    metadata = (("authorization", f"Bearer {key.secret}"),)
    with grpc.insecure_channel(key.mesh.address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        request = ib.ChatRequest(model=CHAT, messages=[message], max_tokens=4)
        _, call = stub.Chat.with_call(request, metadata=metadata, timeout=60)
        assert dict(call.initial_metadata())["x-ratelimit-limit-tokens"] == "100"
        request.max_tokens = 50
        request.n = 2
        with pytest.raises(grpc.RpcError) as caught:
            stub.Chat(request, metadata=metadata, timeout=60)
        with pytest.raises(grpc.RpcError) as streamed:
            next(stub.StreamChat(ib.StreamChatRequest(chat=request), metadata=metadata, timeout=60))
    for error in (caught.value, streamed.value):
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(error.trailing_metadata())
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.reason == "RATE_LIMIT_EXCEEDED"
        assert (info.metadata["limit"], info.metadata["allowed"]) == ("tokens_per_minute", "100")
        assert trailers["x-ratelimit-limit-tokens"] == "100"


def test_tokens_are_settled_to_the_true_count(key: Key) -> None:
    key.limit(tokens_per_minute=100_000, tokens_per_day=1_000_000)
    with key.openai() as client:
        taken = chat(client, max_tokens=3).usage.total_tokens
        pieces = list(
            chat(client, max_tokens=3, stream=True, stream_options={"include_usage": True})
        )
        taken += pieces[-1].usage.total_tokens
        taken += client.embeddings.create(model=EMBED, input=["a", "b c d"]).usage.total_tokens
        # Nobody works on what is refused.
        for fields in ({"model": "nowhere"}, {"model": CHAT, "temperature": "hot"}):
            with pytest.raises(openai.APIStatusError):
                client.chat.completions.create(
                    **{"messages": [{"role": "user", "content": "Hi"}], **fields}
                )
    until(lambda: key.used("tokens_per_minute") == taken, 3)
    until(lambda: key.used("tokens_per_day") == taken, 3)


def test_a_caller_that_hangs_up_frees_its_place(key: Key) -> None:
    key.limit(concurrent_requests=1)
    with key.openai() as client:
        stream = chat(client, LONG, stream=True, max_tokens=800)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            chat(client, max_tokens=2)
        assert "1 calls at the same time" in caught.value.message
        stream.close()
        until(lambda: key.used("concurrent_requests") == 0, 0.5)
        assert chat(client, max_tokens=2).choices


def test_the_sdk_waits_as_long_as_it_is_told(key: Key) -> None:
    key.limit(concurrent_requests=1)
    with key.openai() as holder, key.openai(max_retries=1) as waiter:
        stream = chat(holder, LONG, stream=True, max_tokens=800)
        next(iter(stream))
        timer = threading.Timer(0.6, stream.close)
        timer.start()
        began = time.monotonic()
        assert chat(waiter, max_tokens=2).choices
        # Untold it tries again within half a second.
        assert time.monotonic() - began >= 1.0
        timer.join()


def test_a_change_is_seen_within_a_second(key: Key) -> None:
    def admits() -> bool:
        with key.openai() as client:
            try:
                client.embeddings.create(model=EMBED, input="a")
            except openai.RateLimitError:
                return False
            return True

    assert admits()
    key.limit(requests_per_minute=0)
    assert until(lambda: not admits(), 1.0) < 1.0
    key.limit(requests_per_minute=1000)
    assert until(admits, 1.0) < 1.0


def test_a_budget_stops_hard(key: Key, admin: httpx.Client) -> None:
    """What is spent passes the budget by no more than reservations in flight were wrong by."""
    price = {"model": CHAT, "input_usd": "100", "output_usd": "1000"}
    admin.put("/mesh/v1/prices", json={"price": price}).raise_for_status()
    try:
        budget, prompt, made = 0.1, 40 * 100e-6, 8 * 1000e-6
        key.limit(usd_per_month=f"{budget}", alert_percents=[50])
        time.sleep(1.5)  # Auth reads prices once a second.

        def call() -> str:
            with key.openai() as client:
                try:
                    chat(client, max_tokens=8)
                except openai.RateLimitError as error:
                    return str(error.code)
                return "ok"

        outcomes: list[str] = []
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for _ in range(10):
                outcomes += pool.map(lambda _: call(), range(4))
                if outcomes[-4:].count("ok") == 0:
                    break
        assert outcomes.count("insufficient_quota") >= 4
        spent = 0.0

        def is_settled() -> bool:
            nonlocal spent
            query = {"key_id": key.key_id}
            totals = admin.get("/mesh/v1/usage", params=query).raise_for_status().json()["totals"]
            spent = sum(float(each["cost_usd"]) for each in totals)
            count = sum(int(each["request_count"]) for each in totals)
            return count == outcomes.count("ok") and abs(spent - key.used("usd_per_month")) < 1e-9

        until(is_settled, 5)
        assert budget - (prompt + made) * 2 <= spent
        # The template adds some tokens to each of the four prompts at a time.
        assert spent <= budget + 4 * prompt
        events = admin.get(
            "/mesh/v1/audit/events", params={"kind": "AUDIT_KIND_ALERT", "key_id": key.key_id}
        )
        [alert] = events.raise_for_status().json()["events"]
        assert '"percent":50' in alert["after"]
    finally:
        admin.delete(f"/mesh/v1/prices/{CHAT}").raise_for_status()
