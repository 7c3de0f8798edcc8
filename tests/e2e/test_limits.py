"""Limits on the real mesh: what callers see of them, and that they count the truth."""

import concurrent.futures
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
from support import within

LONG: dict[str, Any] = {
    "text": "Count from one to one thousand in words, slowly.",
    "max_tokens": 4000,
    "extra_body": {"ignore_eos": True},
    "stream": True,
}
"""A stream that is still flowing when a test is done with it."""


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
        return float(self._use(limit)["used"])

    def reserved(self, limit: str) -> float:
        return float(self._use(limit).get("reserved") or 0)

    def delete(self) -> None:
        self._admin.delete("/mesh/v1/limits", params={"scope.key_id": self.key_id})
        self._admin.delete(f"/mesh/v1/keys/{self.key_id}")

    def _use(self, limit: str) -> dict[str, Any]:
        query = {"scope.key_id": self.key_id}
        state = self._admin.get("/mesh/v1/limits:state", params=query).raise_for_status().json()
        [found] = [each for each in state["uses"] if each["limit"] == limit]
        use: dict[str, Any] = found
        return use

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
    made.delete()


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
    assert 20 <= int(error.response.headers["retry-after"]) <= 60
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
    until(lambda: key.used("tokens_per_minute") == taken, 30)
    until(lambda: key.used("tokens_per_day") == taken, 30)


def test_a_caller_that_hangs_up_frees_its_place(key: Key) -> None:
    key.limit(concurrent_requests=1)
    with key.openai() as client:
        stream = chat(client, **LONG)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            chat(client, max_tokens=2)
        assert "1 calls at the same time" in caught.value.message
        stream.close()
        until(lambda: key.used("concurrent_requests") == 0, 10)
        assert chat(client, max_tokens=2).choices


def test_the_sdk_waits_as_long_as_it_is_told(key: Key) -> None:
    key.limit(concurrent_requests=1)
    began: list[float] = []
    refused: list[float] = []

    def heard(reply: httpx.Response) -> None:
        if reply.status_code == 429:
            refused.append(time.monotonic())
            stream.close()

    hooks: Any = {
        "request": [lambda _: began.append(time.monotonic())],
        "response": [heard],
    }
    with key.openai() as holder, httpx.Client(event_hooks=hooks) as http:
        waiter = key.openai(max_retries=5).with_options(http_client=http)
        stream = chat(holder, **LONG)
        next(iter(stream))
        assert chat(waiter, max_tokens=2).choices
    # Untold it tries again within half a second.
    assert refused
    assert began[1] - refused[0] >= 1.0


def test_a_change_is_seen_within_a_second(key: Key) -> None:
    with key.openai() as client:

        def admits() -> bool:
            try:
                client.embeddings.create(model=EMBED, input="a")
            except openai.RateLimitError:
                return False
            return True

        def closes() -> float:
            key.limit(requests_per_minute=1000)
            until(admits, 10)
            key.limit(requests_per_minute=0)
            return until(lambda: not admits(), 10)

        def opens() -> float:
            key.limit(requests_per_minute=0)
            until(lambda: not admits(), 10)
            key.limit(requests_per_minute=1000)
            return until(admits, 10)

        assert admits()
        within(1.0, closes, opens)


def knows_prices(mesh: Mesh, admin: httpx.Client) -> bool:
    """Says whether auth knows a price by now: a key with next to nothing is then refused."""
    poor = Key(mesh, admin)
    poor.limit(usd_per_month="0.000001")
    try:
        with poor.openai() as client:
            chat(client, max_tokens=1)
    except openai.RateLimitError:
        return True
    else:
        return False
    finally:
        poor.delete()


def test_a_budget_stops_hard(mesh: Mesh, key: Key, admin: httpx.Client) -> None:
    """What is spent passes the budget by no more than reservations in flight were wrong by."""
    price = {"model": CHAT, "input_usd": "100", "output_usd": "1000"}
    admin.put("/mesh/v1/prices", json={"price": price}).raise_for_status()
    try:
        budget, prompt, made = 0.1, 40 * 100e-6, 8 * 1000e-6
        key.limit(usd_per_month=f"{budget}", alert_percents=[50])
        until(lambda: knows_prices(mesh, admin), 20)

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
                # What is reserved for calls that are over would hold back the next ones.
                until(lambda: key.reserved("usd_per_month") == 0, 20)
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

        until(is_settled, 30)
        assert budget - (prompt + made) * 2 <= spent
        # The template adds some tokens to each of the four prompts at a time.
        assert spent <= budget + 4 * prompt
        query = {"kind": "AUDIT_KIND_ALERT", "key_id": key.key_id}
        [alert] = mesh.wait(
            "the alert",
            lambda: admin.get("/mesh/v1/audit/events", params=query).json()["events"],
        )
        assert '"percent":50' in alert["after"]
    finally:
        admin.delete(f"/mesh/v1/prices/{CHAT}").raise_for_status()
