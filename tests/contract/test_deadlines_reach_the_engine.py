"""A gRPC deadline that passes ends the engine's work at once, not only the caller's wait."""

import asyncio
import contextlib
import time
from typing import Any

import grpc
import pytest

from inference_node import (
    MODEL,
    FakeEngine,
    FakeMesh,
    Node,
    Reply,
    caller,
    typed_chat,
    until,
)
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.metrics.v1 import usage_service_pb2 as usage_pb2

# Of a chat and of a completion.
PIECE = b'data: {"choices":[{"index":0,"text":"a","delta":{"content":"a"}}]}\n\n'
TIMEOUT_S = 1.0
# Much sooner than the node would give up the engine itself.
MOST_LATE_S = 1.5


async def silent(reply: Reply) -> None:
    await asyncio.sleep(30)


async def talking(reply: Reply) -> None:
    await reply.start()
    with contextlib.suppress(ConnectionError):
        while True:
            await reply.send(PIECE)
            await asyncio.sleep(0.01)
    # The engine of the test notes that the node has gone only while it answers.
    await silent(reply)


CALLS = {
    "Chat": lambda: typed_chat(),
    "StreamChat": lambda: pb.StreamChatRequest(chat=typed_chat()),
    "Complete": lambda: pb.CompleteRequest(model=MODEL, prompts=["a"]),
    "StreamComplete": lambda: pb.CompleteRequest(model=MODEL, prompts=["a"]),
}


@pytest.mark.parametrize("script", [silent, talking])
@pytest.mark.parametrize("name", CALLS)
async def test_the_engine_stops_with_the_deadline(
    node: Node, engine: FakeEngine, mesh: FakeMesh, name: str, script: Any
) -> None:
    engine.script = script
    # The first call on a channel takes longer, which is not the deadline's.
    await node.is_serving()
    stopped_at: list[float] = []

    async def watch() -> None:
        await engine.hung_up.wait()
        stopped_at.append(time.monotonic())

    watching = asyncio.create_task(watch())
    deadline = time.monotonic() + TIMEOUT_S
    call = getattr(node.typed, name)(CALLS[name](), timeout=TIMEOUT_S, metadata=caller("d"))
    pieces = 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if name.startswith("Stream"):
            async for _ in call:
                pieces += 1
        else:
            await call
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert (pieces > 1) == (name.startswith("Stream") and script is talking)
    await asyncio.wait_for(watching, 10)
    assert -0.05 < stopped_at[0] - deadline < MOST_LATE_S
    await until(lambda: mesh.events)
    (event,) = mesh.events
    # What the engine had done by then is unknown, which is not nothing.
    assert event.outcome == usage_pb2.OUTCOME_CANCELLED
    assert not event.HasField("completion_tokens")
