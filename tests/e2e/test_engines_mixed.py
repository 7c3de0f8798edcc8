"""One model on engines of three dialects: the mesh's own fields choose, and no engine sees them."""

import json
from collections.abc import Iterator

import grpc
import httpx
import pytest

from e2e.fleet import Fleet
from e2e.mesh import Mesh
from e2e.recording import RecordingEngine, recording_engine
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.inference.v1 import inference_service_pb2_grpc

MODEL = "mixed"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
EXTENSIONS = {
    "preferred_framework": "openai",
    "fallback_models": ["smollm2-135m"],
    "enable_caching": False,
    "optimization_level": "medium",
    "priority": "high",
    "session_id": "one",
}
NODES = {"mix-vllm": "vllm", "mix-sim": "sim", "mix-api": "openai"}
DEBUG = {"x-debug-mode": "true"}


@pytest.fixture(scope="module")
def engine() -> Iterator[RecordingEngine]:
    with recording_engine(MODEL) as engine:
        yield engine


@pytest.fixture(scope="module", autouse=True)
def nodes(fleet: Fleet, engine: RecordingEngine) -> None:
    first, second = fleet.engines(2, MODEL, "--decode-rate", "1000")
    fleet.join(
        {
            "mix-vllm": ("--engine", "vllm", "--url", first, "--price", f"{MODEL}=2:4"),
            "mix-sim": ("--engine", "sim", "--url", second),
            "mix-api": ("--engine", "openai", "--url", engine.url),
        }
    )


@pytest.fixture
def http(mesh: Mesh) -> Iterator[httpx.Client]:
    with mesh.http() as http:
        yield http


def chat(http: httpx.Client, headers: dict[str, str] | None = None, **fields: object):
    return http.post("/v1/chat/completions", json=BODY | fields, headers=headers)


@pytest.mark.parametrize("node", NODES)
def test_the_preferred_framework_answers(http: httpx.Client, node: str) -> None:
    answers = [chat(http, preferred_framework=NODES[node]) for _ in range(5)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-mesh-node"] for answer in answers} == {node}


def test_a_framework_that_nobody_has_is_a_wish_that_does_not_count(http: httpx.Client) -> None:
    answer = chat(http, preferred_framework="triton")
    assert answer.status_code == 200
    assert answer.headers["x-mesh-node"] in NODES


@pytest.mark.parametrize("stream", [False, True])
def test_engines_do_not_see_the_meshs_fields(
    http: httpx.Client, engine: RecordingEngine, stream: bool
) -> None:
    engine.bodies.clear()
    own = {"temperature": 0.5, "user": "ada", "metadata": {"priority": "high"}, "stream": stream}
    answer = chat(http, **EXTENSIONS, **own)
    assert answer.status_code == 200
    assert answer.headers["x-mesh-node"] == "mix-api"
    (seen,) = engine.bodies
    # The usage is asked for in streams, for the ledger.
    seen.pop("stream_options", None)
    assert seen == BODY | own


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("preferred_framework", 7, None),
        ("preferred_framework", "x" * 65, None),
        ("fallback_models", "mixed", None),
        ("fallback_models", ["m"] * 9, None),
        ("fallback_models", [MODEL, 1], "fallback_models[1]"),
        ("enable_caching", "yes", None),
        ("optimization_level", "ultra", None),
        ("optimization_level", ["low"], None),
        ("priority", "urgent", None),
        ("priority", 1, None),
        ("session_id", 5, None),
        ("session_id", "x" * 201, None),
    ],
)
def test_wrong_values_are_refused_by_name(
    http: httpx.Client, field: str, value: object, param: str | None
) -> None:
    answer = chat(http, **{field: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_argument", param or field)


def test_null_is_as_good_as_nothing(http: httpx.Client) -> None:
    assert chat(http, **dict.fromkeys(EXTENSIONS)).status_code == 200


def test_debug_mode_says_how_the_answer_came_about(http: httpx.Client) -> None:
    answer = chat(http, DEBUG, preferred_framework="vllm")
    said = answer.json()["gateway_metadata"]
    assert (said["node"], said["framework"], said["model"]) == ("mix-vllm", "vllm", MODEL)
    assert said["policy"] == "balanced"
    assert 0 <= said["score"] <= 1
    assert 0 <= said["cache_hit"] <= 1
    assert 0 < said["response_time_ms"] < 10_000
    usage = answer.json()["usage"]
    cost = (2 * usage["prompt_tokens"] + 4 * usage["completion_tokens"]) / 1e6
    assert said["cost_estimate_usd"] == pytest.approx(cost)
    decision = json.loads(answer.headers["x-mesh-decision"])
    assert decision["node"] == "mix-vllm"
    assert decision["candidates"][0]["model"] == MODEL


def test_debug_mode_adds_an_event_before_the_streams_end(http: httpx.Client) -> None:
    events = chat(http, DEBUG, stream=True).text.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    last = json.loads(events[-2].removeprefix("data: "))
    assert last["choices"] == []
    assert last["gateway_metadata"]["node"] in NODES
    assert not any("gateway_metadata" in event for event in events[:-2])


def test_without_debug_mode_nothing_is_said(http: httpx.Client) -> None:
    whole, streamed = (chat(http, {"x-mesh-decision": "{}"}, stream=each) for each in (False, True))
    for answer in (whole, streamed):
        assert answer.status_code == 200
        assert "gateway_metadata" not in answer.text
        assert "x-mesh-decision" not in answer.headers


def test_typed_callers_say_and_see_the_same(mesh: Mesh) -> None:
    hi = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=[pb.ContentPart(text="Hi")])
    request = pb.ChatRequest(
        model="nobody-has-it",
        messages=[hi],
        max_tokens=3,
        preferred_framework="vllm",
        fallback_models=[MODEL],
        priority=pb.PRIORITY_HIGH,
        optimization_level="high",
        session_id="one",
        enable_caching=False,
    )
    metadata = [("authorization", f"Bearer {mesh.admin_key}"), *DEBUG.items()]
    with grpc.insecure_channel(mesh.address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        answer = stub.Chat(request, metadata=metadata, timeout=20)
        *_, last = stub.StreamChat(
            pb.StreamChatRequest(chat=request), metadata=metadata, timeout=20
        )
        request.priority = 9  # type: ignore[assignment]
        with pytest.raises(grpc.RpcError) as refused:
            stub.Chat(request, metadata=metadata, timeout=20)
    for said in (answer.gateway_metadata, last.gateway_metadata):
        assert (said.node, said.framework, said.model) == ("mix-vllm", "vllm", MODEL)
        assert said.policy == "latency"
    assert answer.model == MODEL
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_explain_reads_the_body(http: httpx.Client) -> None:
    body = BODY | {"preferred_framework": "sim", "optimization_level": "low"}
    said = http.post(
        "/mesh/v1/routing:explain", json={"model": MODEL, "body": json.dumps(body)}
    ).json()
    assert said["ordered_node_ids"] == ["mix-sim"]
    assert said["policy"] == "cost"
    by_node = {each["node_id"]: each for each in said["candidates"]}
    assert set(by_node) == set(NODES)
    assert by_node["mix-sim"]["eligible"]
    assert not by_node["mix-vllm"]["eligible"]
    assert by_node["mix-vllm"]["refusal"]


@pytest.mark.parametrize(("status", "code"), [(500, None), (404, "model_not_found")])
def test_an_engine_that_fails_or_lies_is_passed_over(
    http: httpx.Client, engine: RecordingEngine, status: int, code: str | None
) -> None:
    engine.bodies.clear()
    engine.status, engine.code = status, code
    try:
        answers = [chat(http) for _ in range(30)]
    finally:
        engine.status, engine.code = 200, None
    print(f"the failing engine was asked {len(engine.bodies)} times in 30 calls")
    assert {answer.status_code for answer in answers} == {200}
    assert "mix-api" not in {answer.headers["x-mesh-node"] for answer in answers}
