"""Measures how soon the engine stops when a caller hangs up: `make bench-cancellation`.

A mesh of its own with one node over a simulated engine that runs one request at a time. In every
dialect, streaming and not, a caller is brought into a state, closes the connection, and the time
is taken until the engine's own metrics (asked about once a millisecond) say that it is idle:

prefill    the engine reads a prompt that would take it 20 s
decode     the engine is writing
queued     the request waits in the engine's queue, behind another
node       the request waits in the node's queue; what is shown is whether the engine got it
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx

from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.inference.v1 import inference_service_pb2_grpc
from services.cli import stack
from services.cli.part import Part
from services.cli.supervisor import Supervisor

MODEL = stack.CHAT_MODEL
PREFILL_RATE, DECODE_RATE, SLOTS = 1000, 50, 1
LONG = "word " * 16_000  # 20,000 tokens
SHORT = "Tell me all."
ANSWER_TOKENS = 8000
STATES = ("prefill", "decode", "queued", "node")
_LIMIT_S = 10.0


def parts(options: stack.Options) -> list[Part]:
    found = []
    for part in stack.build(options):
        if part.name in ("engine-embed", "node-embed", "embeddings"):
            continue
        if part.name.startswith("engine-"):
            (port,) = part.ports.values()
            argv = [sys.executable, "-m", "services.inference.simulator", "--port", str(port)]
            argv += ["--model", MODEL, "--slots", str(SLOTS)]
            argv += ["--prefill-rate", str(PREFILL_RATE), "--decode-rate", str(DECODE_RATE)]
            part = dataclasses.replace(part, argv=argv)
        elif part.name.startswith("node-"):
            own = {"INFERMESH_ENGINE": "sim", "INFERMESH_ENGINE_SLOTS": str(SLOTS)}
            part = dataclasses.replace(part, env={**part.env, **own})
        found.append(part)
    return found


class Engine:
    """The simulated engine's own word on what it does."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url)

    async def counts(self) -> tuple[int, int]:
        """Returns how many requests it runs, and how many wait there."""
        found = {"running": 0, "waiting": 0}
        for line in (await self._http.get("/metrics")).text.splitlines():
            for name in found:
                if line.startswith(f"vllm:num_requests_{name}"):
                    found[name] = int(float(line.rsplit(" ", 1)[1]))
        return found["running"], found["waiting"]

    async def until(self, wanted: Callable[[int, int], bool], what: str) -> None:
        deadline = time.monotonic() + _LIMIT_S
        while not wanted(*await self.counts()):
            if time.monotonic() > deadline:
                raise SystemExit(f"{what}: not within {_LIMIT_S:g} s: {await self.counts()}")
            await asyncio.sleep(0.001)


Call = Callable[[str, bool], Awaitable[Callable[[], None]]]
"""Sends a prompt, as a stream or not, and returns how its caller hangs up."""


def rest(port: int, key: str, path: str, body: Callable[[str], dict[str, Any]]) -> Call:
    async def call(prompt: str, stream: bool) -> Callable[[], None]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = json.dumps({"model": MODEL, "stream": stream, **body(prompt)}).encode()
        writer.write(
            b"POST %s HTTP/1.1\r\nhost: mesh\r\ncontent-type: application/json\r\n"
            b"anthropic-version: 2023-06-01\r\nauthorization: Bearer %s\r\n"
            b"content-length: %d\r\n\r\n%s" % (path.encode(), key.encode(), len(data), data)
        )
        await writer.drain()

        def hang_up(_: asyncio.StreamReader = reader) -> None:
            # Without its reader a connection would be closed before.
            writer.close()

        return hang_up

    return call


def typed(channel: grpc.aio.Channel, key: str) -> Call:
    stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
    metadata = (("authorization", f"Bearer {key}"),)

    async def call(prompt: str, stream: bool) -> Callable[[], None]:
        message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=[pb.ContentPart(text=prompt)])
        chat = pb.ChatRequest(model=MODEL, messages=[message], max_tokens=ANSWER_TOKENS)
        if stream:
            request = pb.StreamChatRequest(chat=chat)
            under_way = stub.StreamChat(request, metadata=metadata)
        else:
            under_way = stub.Chat(chat, metadata=metadata)

        def hang_up() -> None:
            under_way.cancel()

        return hang_up

    return call


def _chat(prompt: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": ANSWER_TOKENS}


def _completion(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": ANSWER_TOKENS}


def _ollama(prompt: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"messages": messages, "options": {"num_predict": ANSWER_TOKENS}}


@contextlib.asynccontextmanager
async def mesh(folder: Path, port: int, base_port: int) -> AsyncIterator[tuple[Engine, str]]:
    options = stack.Options(
        state_dir=folder / "state",
        models_dir=folder,
        port=port,
        base_port=base_port,
        chat_nodes=1,
    )
    found = parts(options)
    (engine_port,) = next(p for p in found if p.name.startswith("engine-")).ports.values()
    supervisor = Supervisor(found)
    await supervisor.start()
    try:
        yield (
            Engine(f"http://127.0.0.1:{engine_port}"),
            (folder / "state" / "admin.key").read_text().strip(),
        )
    finally:
        await supervisor.stop()


async def stopped_ms(call: Call, engine: Engine, state: str, stream: bool) -> float | None:
    """Returns the milliseconds until the engine is rid of a call; None where it never got it."""
    fillers = {"queued": 1, "node": 2}.get(state, 0)
    hang_ups = [await call(SHORT, True) for _ in range(fillers)]
    if fillers:
        await engine.until(lambda r, w: r + w == fillers, "the calls before it")
    hang_up = await call(LONG if state == "prefill" else SHORT, stream)
    here = fillers + (state != "node")
    await engine.until(lambda r, w: r + w == here, "the call at the engine")
    # Well within its prefill, its answer or its wait.
    await asyncio.sleep(0.3)
    if sum(counts := await engine.counts()) != here:
        raise SystemExit(f"{state}: the engine ended the call by itself: {counts}")
    began = time.monotonic()
    hang_up()
    if state == "node":
        # When there is room, nothing comes.
        await asyncio.sleep(0.1)
        for each in hang_ups:
            each()
        await engine.until(lambda r, w: r + w == 0, "an idle engine")
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert await engine.counts() == (0, 0), "the engine got a call that nobody waits for"
        return None
    await engine.until(lambda r, w: r + w == fillers, "an idle engine")
    took_ms = 1000 * (time.monotonic() - began)
    for each in hang_ups:
        each()
    await engine.until(lambda r, w: r + w == 0, "an idle engine")
    return took_ms


async def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--port", type=int, default=23598)
    arguments.add_argument("--base-port", type=int, default=23540)
    said = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="infermesh-bench-") as name:
        async with (
            mesh(Path(name), said.port, said.base_port) as (engine, key),
            grpc.aio.insecure_channel(f"127.0.0.1:{said.port}") as channel,
        ):
            port = said.port
            calls = {
                "OpenAI, chat": rest(port, key, "/v1/chat/completions", _chat),
                "OpenAI, completion": rest(port, key, "/v1/completions", _completion),
                "Anthropic": rest(port, key, "/v1/messages", _chat),
                "Ollama": rest(port, key, "/api/chat", _ollama),
                "typed gRPC": typed(channel, key),
            }
            await until_routed(port, key)
            print("milliseconds, median (most)\n")
            print(
                "| dialect | form | prefill | decode | queued at the engine | in the node's queue |"
            )
            print("| --- | --- | ---: | ---: | ---: | ---: |")
            worst = 0.0
            for dialect, call in calls.items():
                for stream in (True, False):
                    cells = []
                    for state in STATES:
                        took = [
                            await stopped_ms(call, engine, state, stream)
                            for _ in range(said.rounds)
                        ]
                        known = [each for each in took if each is not None]
                        worst = max([worst, *known])
                        cells.append(
                            f"{statistics.median(known):.0f} ({max(known):.0f})"
                            if known
                            else "never sent"
                        )
                    print(
                        f"| {dialect} | {'stream' if stream else 'whole'} | {' | '.join(cells)} |"
                    )
            print(f"\n{said.rounds} each; the most of all is {worst:.0f} ms")


async def until_routed(port: int, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers) as http:
        for _ in range(300):
            body = {"model": MODEL, **_chat("hi"), "max_tokens": 1}
            if (await http.post("/v1/chat/completions", json=body)).status_code == 200:
                return
            await asyncio.sleep(0.1)
    raise SystemExit("the mesh does not answer")


if __name__ == "__main__":
    asyncio.run(main())
