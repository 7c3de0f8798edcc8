"""A node's work on its engine: which one it is, loading models, running it, and the node's key."""

import asyncio
import os
import signal
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import orjson
import psutil
import pytest

from infermesh.auth.v1 import join_token_service_pb2, join_token_service_pb2_grpc
from infermesh.registry.v1 import node_service_pb2 as pb
from services.inference.child import COMMANDS, ChildLoader, EngineChild
from services.inference.detection import detect
from services.inference.enrolment import enrol
from services.inference.http_client import EngineClient
from services.inference.loading import loader_of
from services.inference.state import EngineState
from services.kit.errors import MeshError

Page = tuple[int, object] | list[object]


@asynccontextmanager
async def engine(pages: dict[str, Page]) -> AsyncIterator[tuple[EngineClient, list[tuple]]]:
    """Serves pages by path: a status with an object, or the objects of a stream, one a line."""
    asked: list[tuple[str, object]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            path = head.split(b" ")[1].decode()
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            body = await reader.readexactly(length)
            asked.append((path, orjson.loads(body) if body else None))
            page = pages.get(path, (404, {"detail": "Not Found"}))
            if isinstance(page, list):
                status, answer = 200, b"\n".join(map(orjson.dumps, page))
            else:
                status, answer = page[0], orjson.dumps(page[1])
            writer.write(
                b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(answer), answer)
            )

    async def serving(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(serving, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = EngineClient(f"http://127.0.0.1:{port}", idle_timeout_s=5)
    try:
        yield client, asked
    finally:
        client.close()
        server.close()


def models(owner: str) -> Page:
    return 200, {"object": "list", "data": [{"id": "m", "owned_by": owner}]}


@pytest.mark.parametrize(
    ("dialect", "pages"),
    [
        (
            "llamacpp",
            {
                "/props": (200, {"default_generation_settings": {}, "total_slots": 4}),
                "/v1/models": models("llamacpp"),
            },
        ),
        ("sglang", {"/get_model_info": (200, {"model_path": "x"}), "/v1/models": models("sglang")}),
        ("sglang", {"/model_info": (200, {"model_path": "x"}), "/v1/models": models("sglang")}),
        (
            "tgi",
            {
                "/info": (200, {"model_id": "x", "max_total_tokens": 4096}),
                "/v1/models": models("x"),
            },
        ),
        ("tei", {"/info": (200, {"model_id": "x", "model_type": {"reranker": {}}})}),
        ("ollama", {"/api/version": (200, {"version": "0.9"}), "/v1/models": models("library")}),
        ("vllm", {"/version": (200, {"version": "0.9"}), "/v1/models": models("vllm")}),
        ("openai", {"/v1/models": models("somebody")}),
        (None, {"/v1/models": (503, {"error": "loading"})}),
        (None, {"/v1/models": (200, [])}),
    ],
)
async def test_an_engine_is_told_by_what_only_it_has(dialect, pages) -> None:
    async with engine(pages) as (client, _):
        assert await detect(client) == dialect


async def test_nobody_is_no_engine(free_port) -> None:
    assert await detect(EngineClient(f"http://127.0.0.1:{free_port()}", idle_timeout_s=5)) is None


async def told(work: Callable[[Callable], Awaitable[None]]) -> list[pb.ModelProgress]:
    said: list[pb.ModelProgress] = []
    await work(said.append)
    return said


async def test_ollama_pulls_loads_and_drops() -> None:
    pull = [
        {"status": "pulling manifest"},
        {"status": "pulling abc", "digest": "abc", "total": 100, "completed": 40},
        {"status": "success"},
    ]
    async with engine({"/api/pull": pull, "/api/generate": (200, {"done": True})}) as (client, log):
        loader = loader_of("ollama", client)
        said = await told(lambda on: loader.load("qwen3:8b", "", on))
        assert [p.status for p in said] == ["pulling manifest", "pulling abc", "success", "loading"]
        assert (said[1].completed_bytes, said[1].total_bytes) == (40, 100)
        assert not said[0].HasField("completed_bytes")
        await told(lambda on: loader.unload("qwen3:8b", on))
        assert log == [
            ("/api/pull", {"model": "qwen3:8b", "stream": True}),
            ("/api/generate", {"model": "qwen3:8b", "keep_alive": -1, "stream": False}),
            ("/api/generate", {"model": "qwen3:8b", "keep_alive": 0, "stream": False}),
        ]


@pytest.mark.parametrize(
    ("pull", "reason"),
    [
        ([{"status": "pulling"}, {"error": "no space left"}], "ENGINE_FAILED"),
        ([{"status": "pulling"}], "ENGINE_FAILED"),
        ((404, {"error": "model not found"}), "MODEL_NOT_FOUND"),
        ([[1]], "ENGINE_FAILED"),
    ],
)
async def test_a_pull_that_fails_is_no_success(pull, reason) -> None:
    async with engine({"/api/pull": pull}) as (client, log):
        with pytest.raises(MeshError) as caught:
            await loader_of("ollama", client).load("m", "", lambda progress: None)
        assert caught.value.reason_name == reason
        assert [path for path, _ in log] == ["/api/pull"]


@pytest.mark.parametrize(("dialect", "prefix"), [("vllm", "/v1"), ("sglang", ""), ("sim", "/v1")])
async def test_adapters_are_loaded_and_dropped(dialect, prefix) -> None:
    done = (200, "Success")
    pages = {f"{prefix}/load_lora_adapter": done, f"{prefix}/unload_lora_adapter": done}
    async with engine(pages) as (client, log):
        loader = loader_of(dialect, client)
        await told(lambda on: loader.load("sql", "/adapters/sql", on))
        await told(lambda on: loader.unload("sql", on))
        assert log == [
            (f"{prefix}/load_lora_adapter", {"lora_name": "sql", "lora_path": "/adapters/sql"}),
            (f"{prefix}/unload_lora_adapter", {"lora_name": "sql"}),
        ]
        with pytest.raises(MeshError) as caught:
            await loader.load("sql", "", lambda progress: None)
        assert caught.value.param == "source"


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ((404, {"detail": "Not Found"}), "UNSUPPORTED"),
        ((404, {"error": {"message": "no adapter", "type": "NotFoundError"}}), "MODEL_NOT_FOUND"),
        ((400, {"error": {"message": "bad rank", "type": "BadRequest"}}), "ENGINE_REJECTED"),
    ],
)
async def test_an_adapter_that_is_refused(page, reason) -> None:
    async with engine({"/v1/load_lora_adapter": page}) as (client, _):
        with pytest.raises(MeshError) as caught:
            await loader_of("vllm", client).load("sql", "/a", lambda progress: None)
        assert caught.value.reason_name == reason


class Mesh(join_token_service_pb2_grpc.JoinTokenServiceServicer):
    """Gives out keys for the token `good`."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def RedeemJoinToken(self, request, context):  # noqa: N802
        self.asked.append(request.node_id)
        token = dict(context.invocation_metadata())["authorization"]
        if not token.startswith("Bearer good"):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "The API key is not valid.")
        key = f"im-key-{len(self.asked)}"
        return join_token_service_pb2.RedeemJoinTokenResponse(key_id="k", secret=key)


async def test_a_token_becomes_a_key_that_is_kept(tmp_path: Path, free_port) -> None:
    mesh, port, file = Mesh(), free_port(), tmp_path / "node.key"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        # The mesh is not up yet: the node waits for it.
        enrolling = asyncio.create_task(enrol(channel, "good", "gpu-1", file))
        await asyncio.sleep(0.1)
        server = grpc.aio.server()
        join_token_service_pb2_grpc.add_JoinTokenServiceServicer_to_server(mesh, server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        assert await enrolling == "im-key-1"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert "good" not in file.read_text()
        assert await enrol(channel, "good", "gpu-1", file) == "im-key-1"
        assert mesh.asked == ["gpu-1"]
        # A new token means that the old key is no good.
        assert await enrol(channel, "good again", "gpu-1", file) == "im-key-2"
        with pytest.raises(SystemExit, match="The API key is not valid"):
            await enrol(channel, "bad", "gpu-1", file)
        assert await enrol(channel, "good again", "gpu-1", file) == "im-key-2"
        await server.stop(None)


@asynccontextmanager
async def child(folder: Path, port: int, model: str = "sim-a") -> AsyncIterator[tuple]:
    state = EngineState()
    engine = EngineChild(
        COMMANDS["sim"], model, port, more=[], log_file=folder / "engine.log", state=state
    )
    running = asyncio.create_task(engine.run())
    try:
        yield engine, state
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def served(port: int) -> list[str]:
    """Returns what the engine says that it serves, once it does."""
    client = EngineClient(f"http://127.0.0.1:{port}", idle_timeout_s=5)
    async with asyncio.timeout(20):
        while True:
            try:
                with await client.get("/v1/models") as exchange:
                    listing = orjson.loads(await exchange.read_all())
                client.close()
                return [model["id"] for model in listing["data"]]
            except OSError:
                pass
            except Exception as error:
                if type(error).__name__ != "EngineConnectError":
                    raise
            await asyncio.sleep(0.05)


def processes(port: int) -> list[psutil.Process]:
    words = ["--port", str(port)]
    return [
        each
        for each in psutil.Process().children(recursive=True)
        if words == [word for word in each.cmdline() if word in words]
    ]


async def test_an_engine_of_the_nodes_own_is_brought_back_and_goes_with_it(
    tmp_path: Path, free_port
) -> None:
    port = free_port()
    async with child(tmp_path, port) as (_, state):
        assert await served(port) == ["sim-a"]
        assert state.engine_generation == 1
        [process] = processes(port)
        assert not any(name.startswith("INFERMESH_") for name in process.environ())
        os.kill(process.pid, signal.SIGKILL)
        process.wait(5)
        assert await served(port) == ["sim-a"]
        assert state.engine_generation == 2
        [process] = processes(port)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def test_an_engine_of_the_nodes_own_changes_its_model(tmp_path: Path, free_port) -> None:
    port = free_port()
    async with child(tmp_path, port) as (engine, state):
        assert await served(port) == ["sim-a"]
        loader = ChildLoader(engine, state)

        async def watch() -> None:
            while True:
                await asyncio.sleep(0.05)
                if state.engine_generation > 1:
                    await served(port)
                    state.set_up(True)

        watching = asyncio.create_task(watch())
        said = await told(lambda on: loader.load("sim-b", "", on))
        assert [p.status for p in said] == ["stopping the engine", "starting the engine"]
        assert await served(port) == ["sim-b"]
        # Callers name it as the operator does, whatever its file is called.
        await loader.load("sim-c", "/models/some-file", lambda progress: None)
        assert await served(port) == ["sim-c"]
        watching.cancel()
        with pytest.raises(MeshError):
            await loader.unload("sim-a", lambda progress: None)
        state.models["sim-c"] = None
        await loader.unload("sim-c", lambda progress: None)
        assert processes(port) == []
        assert not state.is_up


async def test_a_model_that_does_not_start_gives_way_to_the_one_before(
    tmp_path: Path, free_port, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setattr("services.inference.child._FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr("services.inference.child._MAX_STARTS", 1)
    async with child(tmp_path, port) as (engine, state):
        await served(port)
        # The simulator ends at once with an argument that it does not know.
        with pytest.raises(MeshError) as caught:
            await ChildLoader(engine, state).load("x", "--bad", lambda progress: None)
        assert caught.value.reason_name == "ENGINE_FAILED"
        assert await served(port) == ["sim-a"]
