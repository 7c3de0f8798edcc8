"""`infermesh nodes …` against the contracts: what it sends, what it prints, how it fails."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import timestamp_pb2
from typer.testing import CliRunner

from infermesh.auth.v1 import join_token_service_pb2, join_token_service_pb2_grpc
from infermesh.errors.v1 import errors_pb2
from infermesh.registry.v1 import node_service_pb2, node_service_pb2_grpc, resources_pb2
from services.cli.main import app
from services.kit import guard
from services.kit.errors import MeshError

NODE = resources_pb2.Node(
    node_id="gpu-1",
    address="10.0.0.7:17121",
    engine="vllm",
    engine_version="0.9",
    state=resources_pb2.NODE_STATE_READY,
    labels={"zone": "rack-1"},
    tier=1,
    models=[
        resources_pb2.ServedModel(name="m", input_price=0.5, output_price=1.5),
        resources_pb2.ServedModel(name="sql", base_model="m"),
    ],
    load=resources_pb2.NodeLoad(
        running=3,
        kv_use=0.25,
        tokens_per_second=120.04,
        loaded_adapters=["sql"],
        cached_tokens=60,
        prompt_tokens=100,
        expected_cached_tokens=75,
    ),
    commands=["load sql: loading"],
)


class Scripted(
    node_service_pb2_grpc.NodeServiceServicer, join_token_service_pb2_grpc.JoinTokenServiceServicer
):
    """Answers with fixed resources and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def GetNode(self, request, context):  # noqa: N802
        self.asked.append(request)
        return NODE

    async def LoadModel(self, request, context):  # noqa: N802
        self.asked.append(request)
        if request.model == "bad":
            raise MeshError(errors_pb2.ERROR_REASON_UNSUPPORTED, "This engine loads no models.")
        for progress in (
            node_service_pb2.ModelProgress(
                status="pulling", completed_bytes=2**20, total_bytes=2**21
            ),
            node_service_pb2.ModelProgress(status="done", done=True),
        ):
            yield node_service_pb2.LoadModelResponse(progress=progress)

    async def UnloadModel(self, request, context):  # noqa: N802
        self.asked.append(request)
        progress = node_service_pb2.ModelProgress(status="done", done=True)
        yield node_service_pb2.UnloadModelResponse(progress=progress)

    async def BenchmarkNode(self, request, context):  # noqa: N802
        self.asked.append(request)
        yield node_service_pb2.BenchmarkNodeResponse(completed=1)
        result = node_service_pb2.BenchmarkResult(
            duration=2,
            requests_per_second=4,
            latency=node_service_pb2.Percentiles(p50=0.5, p95=0.95, p99=0.99),
        )
        yield node_service_pb2.BenchmarkNodeResponse(completed=8, result=result)

    async def CreateJoinToken(self, request, context):  # noqa: N802
        self.asked.append(request)
        expires = timestamp_pb2.Timestamp(seconds=1_700_000_000)
        token = join_token_service_pb2.JoinToken(token_id="key_t", expire_time=expires)
        return join_token_service_pb2.CreateJoinTokenResponse(token=token, secret="im-token")

    async def ListJoinTokens(self, request, context):  # noqa: N802
        self.asked.append(request)
        now = int(time.time())
        ahead, ago = (timestamp_pb2.Timestamp(seconds=now + s) for s in (900, -900))
        tokens = [
            join_token_service_pb2.JoinToken(token_id="key_good", expire_time=ahead),
            join_token_service_pb2.JoinToken(token_id="key_late", expire_time=ago),
            join_token_service_pb2.JoinToken(
                token_id="key_spent", expire_time=ahead, max_uses=2, use_count=2
            ),
            join_token_service_pb2.JoinToken(
                token_id="key_gone", expire_time=ahead, revoke_time=ago
            ),
        ]
        return join_token_service_pb2.ListJoinTokensResponse(tokens=tokens)

    async def RevokeJoinToken(self, request, context):  # noqa: N802
        self.asked.append(request)
        return join_token_service_pb2.JoinToken(token_id=request.token_id)


class Cli:
    """Runs commands against the scripted mesh."""

    def __init__(self, port: int) -> None:
        self.mesh = Scripted()
        self._env = {
            "INFERMESH_ADDRESS": f"127.0.0.1:{port}",
            "INFERMESH_KEY": "im-admin",
            "COLUMNS": "160",
            "NO_COLOR": "1",
        }

    def __call__(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["nodes", *arguments], env=self._env)


@pytest.fixture(scope="module")
def cli(free_port: Callable[[], int]) -> Iterator[Cli]:
    port = free_port()
    cli = Cli(port)
    loop = asyncio.new_event_loop()

    async def start() -> grpc.aio.Server:
        server = grpc.aio.server()
        guarded = guard.guarded(server)
        node_service_pb2_grpc.add_NodeServiceServicer_to_server(cli.mesh, guarded)
        join_token_service_pb2_grpc.add_JoinTokenServiceServicer_to_server(cli.mesh, guarded)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        return server

    server = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield cli
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


def test_show_says_all_that_is_known(cli: Cli) -> None:
    done = cli("show", "gpu-1")
    assert done.exit_code == 0, done.output
    words = " ".join(done.stdout.split())
    for expected in (
        *("state ready", "engine vllm 0.9", "tier 1", "labels zone=rack-1", "running 3"),
        *("queued unknown", "cache in use 25%", "tokens/s 120.0", "first token, s unknown"),
        *("cached tokens 60 of 100, 75 expected", "adapters sql", "does load sql: loading"),
        *("m unknown 0.5:1.5", "sql unknown m"),
    ):
        assert expected in words, (expected, words)


def test_load_and_unload(cli: Cli) -> None:
    done = cli("load", "gpu-1", "sql", "--source", "/adapters/sql")
    assert (done.exit_code, done.stdout) == (0, "gpu-1 serves sql.\n")
    request = node_service_pb2.LoadModelRequest(
        node_id="gpu-1", model="sql", source="/adapters/sql"
    )
    assert cli.mesh.asked[-1] == request
    done = cli("unload", "gpu-1", "sql")
    assert (done.exit_code, done.stdout) == (0, "gpu-1 has dropped sql from its memory.\n")
    done = cli("load", "gpu-1", "bad")
    assert (done.exit_code, done.stderr) == (1, "This engine loads no models.\n")


def test_benchmark(cli: Cli) -> None:
    done = cli("benchmark", "gpu-1", "m", "--requests", "8", "--concurrency", "2")
    assert done.exit_code == 0, done.output
    request = node_service_pb2.BenchmarkNodeRequest(
        node_id="gpu-1",
        model="m",
        requests=8,
        concurrency=2,
        prompt_tokens=128,
        output_tokens=64,
    )
    assert cli.mesh.asked[-1] == request
    words = " ".join(done.stdout.split())
    assert "4.00 requests/s, unknown tokens/s over 2.0 s" in words
    assert "latency, s 0.500 0.950 0.990" in words
    assert "first token" not in words


def test_a_token_is_alone_on_standard_output(cli: Cli) -> None:
    done = cli("token", "--expires", "30m", "--uses", "2", "--name", "rack")
    assert (done.exit_code, done.stdout) == (0, "im-token\n")
    asked = cli.mesh.asked[-1]
    assert (asked.ttl.seconds, asked.max_uses, asked.display_name) == (1800, 2, "rack")
    assert "for 2 nodes" in done.stderr
    cli("token")
    assert (cli.mesh.asked[-1].ttl.seconds, cli.mesh.asked[-1].max_uses) == (3600, 1)


@pytest.mark.parametrize("expires", ["1", "0h", "1w", "-1h", "1h30m"])
def test_a_time_that_is_none_sends_nothing(cli: Cli, expires: str) -> None:
    before = len(cli.mesh.asked)
    assert cli("token", "--expires", expires).exit_code == 2
    assert len(cli.mesh.asked) == before


def test_tokens_are_listed_and_revoked(cli: Cli) -> None:
    done = cli("token", "list")
    assert done.exit_code == 0, done.output
    states = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("key_")}
    for token_id, state in (
        ("key_good", "valid"),
        ("key_late", "expired"),
        ("key_spent", "used up"),
        ("key_gone", "revoked"),
    ):
        assert states[token_id].rstrip().endswith(state)
    assert "2 of 2" in states["key_spent"]
    done = cli("token", "revoke", "key_good")
    assert (done.exit_code, done.stdout) == (0, "key_good is revoked.\n")
    assert cli.mesh.asked[-1].token_id == "key_good"
