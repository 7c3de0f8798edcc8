"""The endpoint picker protocol as other gateways speak it: a stream, in every body mode."""

import json
from collections.abc import AsyncIterator

import grpc
import pytest
from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from contract.routing_service import DESTINATION, Mesh, mutated, node, running

MODE = processing_mode_pb2.ProcessingMode


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running() as mesh:
        mesh.sync(node("a", 1), node("b", 2, running=1), node("c", 3, running=2))
        await mesh.until_states(a="", b="", c="")
        yield mesh


def headers_set(answer: pb.ProcessingResponse) -> dict[str, str]:
    """Returns the headers that an answer to request headers sets."""
    return mutated(answer.request_headers.response.header_mutation.set_headers)


def destination(answer: pb.ProcessingResponse) -> str:
    value = headers_set(answer)[DESTINATION]
    assert answer.dynamic_metadata["envoy.lb"][DESTINATION] == value
    return value


class Gateway:
    """One call of a gateway."""

    def __init__(self, mesh: Mesh) -> None:
        self.call = mesh.ext_proc.Process()

    async def say(self, **message: object) -> None:
        await self.call.write(pb.ProcessingRequest(**message))

    async def hear(self) -> pb.ProcessingResponse:
        answer = await self.call.read()
        assert answer is not grpc.aio.EOF
        return answer

    async def end(self) -> None:
        await self.call.done_writing()
        assert await self.call.read() is grpc.aio.EOF
        assert await self.call.code() == grpc.StatusCode.OK


def start(mode: int = MODE.NONE, *, ended: bool = False, **headers: str) -> dict[str, object]:
    request = pb.HttpHeaders(end_of_stream=ended)
    request.headers.headers.add(key=":path", raw_value=b"/v1/chat/completions")
    for key, value in headers.items():
        request.headers.headers.add(key=key.replace("_", "-"), raw_value=value.encode())
    config = pb.ProtocolConfiguration(request_body_mode=mode, response_body_mode=mode)  # type: ignore
    return {"request_headers": request, "protocol_config": config}


def chat(model: str = "m", length: int = 10) -> bytes:
    return json.dumps({"model": model, "messages": [{"content": "x" * length}]}).encode()


async def test_a_buffered_body_is_answered_with_the_choice(mesh: Mesh) -> None:
    gateway = Gateway(mesh)
    await gateway.say(**start(MODE.BUFFERED))
    assert not headers_set(await gateway.hear())
    await gateway.say(request_body=pb.HttpBody(body=chat(), end_of_stream=True))
    answer = await gateway.hear()
    response = answer.request_body.response
    value = mutated(response.header_mutation.set_headers)[DESTINATION]
    assert value == "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3"
    assert answer.dynamic_metadata["envoy.lb"][DESTINATION] == value
    assert response.clear_route_cache
    await gateway.end()


@pytest.mark.parametrize("length", [10, 200_000])
async def test_a_full_duplex_body_is_waited_for_and_sent_back_as_it_came(
    mesh: Mesh, length: int
) -> None:
    gateway = Gateway(mesh)
    body = chat(length=length)
    await gateway.say(**start(MODE.FULL_DUPLEX_STREAMED))
    half = len(body) // 2
    await gateway.say(request_body=pb.HttpBody(body=body[:half]))
    await gateway.say(request_body=pb.HttpBody(body=body[half:], end_of_stream=True))
    assert destination(await gateway.hear()).startswith("127.0.0.1:1")
    back, ended = b"", False
    while not ended:
        chunk = (await gateway.hear()).request_body.response.body_mutation.streamed_response
        assert len(chunk.body) <= 64 * 1024
        back, ended = back + chunk.body, chunk.end_of_stream
    assert back == body
    await gateway.say(response_headers=pb.HttpHeaders())
    assert (await gateway.hear()).HasField("response_headers")
    await gateway.say(response_body=pb.HttpBody(body=b"answer", end_of_stream=True))
    chunk = (await gateway.hear()).response_body.response.body_mutation.streamed_response
    assert (chunk.body, chunk.end_of_stream) == (b"answer", True)
    await gateway.end()


async def test_trailers_end_a_full_duplex_body(mesh: Mesh) -> None:
    gateway = Gateway(mesh)
    await gateway.say(**start(MODE.FULL_DUPLEX_STREAMED))
    await gateway.say(request_body=pb.HttpBody(body=chat()))
    await gateway.say(request_trailers=pb.HttpTrailers())
    assert destination(await gateway.hear())
    chunk = (await gateway.hear()).request_body.response.body_mutation.streamed_response
    # The trailers end the stream, not the body before them.
    assert (chunk.body, chunk.end_of_stream) == (chat(), False)
    assert (await gateway.hear()).HasField("request_trailers")
    await gateway.end()


async def test_a_streamed_body_is_decided_by_the_headers(mesh: Mesh) -> None:
    gateway = Gateway(mesh)
    await gateway.say(**start(MODE.STREAMED, x_mesh_model="m"))
    assert destination(await gateway.hear())
    await gateway.say(request_body=pb.HttpBody(body=b"{", end_of_stream=False))
    assert (await gateway.hear()).HasField("request_body")
    await gateway.end()


async def test_the_subset_hint_limits_the_choice(mesh: Mesh) -> None:
    gateway = Gateway(mesh)
    message = start(x_mesh_model="m")
    request = pb.ProcessingRequest(**message)
    hint = request.metadata_context.filter_metadata["envoy.lb.subset_hint"]
    hint["x-gateway-destination-endpoint-subset"] = "127.0.0.1:3,127.0.0.1:9"
    await gateway.call.write(request)
    assert destination(await gateway.hear()) == "127.0.0.1:3"
    await gateway.end()

    other = Gateway(mesh)
    listed = pb.ProcessingRequest(**message)
    hint = listed.metadata_context.filter_metadata["envoy.lb.subset_hint"]
    hint.get_or_create_list("x-gateway-destination-endpoint-subset").extend(["127.0.0.1:2"])
    await other.call.write(listed)
    assert destination(await other.hear()) == "127.0.0.1:2"
    await other.end()

    third = Gateway(mesh)
    await third.say(**start(x_mesh_model="m", x_gateway_destination_endpoint_subset="127.0.0.1:9"))
    assert (await third.hear()).immediate_response.status.code == 503


async def test_a_refusal_ends_the_call(mesh: Mesh) -> None:
    gateway = Gateway(mesh)
    await gateway.say(**start(MODE.BUFFERED))
    await gateway.hear()
    await gateway.say(request_body=pb.HttpBody(body=chat("ghost"), end_of_stream=True))
    reply = (await gateway.hear()).immediate_response
    assert reply.status.code == 404
    assert json.loads(reply.body)["error"]["code"] == "model_not_found"
    assert await gateway.call.read() is grpc.aio.EOF


async def test_a_call_that_names_no_model_goes_on(mesh: Mesh) -> None:
    for body in (b"", b"[]", b"{not json", b'{"model": 7}'):
        gateway = Gateway(mesh)
        await gateway.say(**start(MODE.BUFFERED))
        await gateway.hear()
        await gateway.say(request_body=pb.HttpBody(body=body, end_of_stream=True))
        answer = await gateway.hear()
        assert answer.HasField("request_body")
        assert not answer.request_body.response.header_mutation.set_headers
        await gateway.end()


async def test_the_endpoint_that_served_is_counted(mesh: Mesh) -> None:
    gateway = Gateway(mesh)
    await gateway.say(**start(x_mesh_model="m"))
    assert destination(await gateway.hear()).startswith("127.0.0.1:1")
    report = pb.ProcessingRequest(response_headers=pb.HttpHeaders())
    key = "x-gateway-destination-endpoint-served"
    report.metadata_context.filter_metadata["envoy.lb"][key] = "127.0.0.1:2"
    await gateway.call.write(report)
    await gateway.hear()
    sent = {one.node_id: one.sent_since_report for one in (await mesh.explain()).candidates}
    assert sent == {"a": 1, "b": 1, "c": 0}
    await gateway.end()
