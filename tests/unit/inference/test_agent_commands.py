"""What the node does when an operator asks, and what it says of it."""

import asyncio

import pytest

from infermesh.errors.v1 import errors_pb2
from infermesh.registry.v1 import node_service_pb2 as pb
from services.inference import benchmark as benchmark_module
from services.inference.benchmark import EngineBenchmark, percentiles
from services.inference.commands import Commands
from services.inference.engines.dialect import EngineModel, Tokens
from services.inference.http_client import EngineConnectionError
from services.inference.identity import Identity, IdentityServicer
from services.inference.loading import NoLoader
from services.kit.errors import MeshError


class Loader:
    """Says one thing, waits to be let go, and then ends as it was told."""

    def __init__(self, outcome: BaseException | None = None) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.go = asyncio.Event()
        self.outcome = outcome
        self.cancelled = False

    async def load(self, model, source, on_progress):
        self.asked.append(("load", model, source))
        for status in ("one", "two"):
            on_progress(pb.ModelProgress(status=status))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.outcome:
            raise self.outcome

    async def unload(self, model, on_progress):
        self.asked.append(("unload", model))


class World:
    """Commands over a loader."""

    def __init__(self, loader: Loader, benchmark: object = None) -> None:
        self.refreshed = 0
        self.woken = 0
        self.commands = Commands(loader, benchmark, self._refresh)
        self.commands.on_progress(self._wake)

    async def _refresh(self) -> None:
        self.refreshed += 1

    def _wake(self) -> None:
        self.woken += 1

    async def said(self) -> pb.CommandProgress:
        for _ in range(10):
            await asyncio.sleep(0)
        [progress] = self.commands.take_progress()
        return progress


def load(command_id: str = "1") -> pb.NodeCommand:
    request = pb.LoadModelRequest(node_id="n", model="m", source="/a")
    return pb.NodeCommand(command_id=command_id, load_model=request)


async def test_of_progress_only_the_latest_is_told() -> None:
    loader = Loader()
    world = World(loader)
    world.commands.start(load())
    assert (await world.said()).model.status == "two"
    assert world.woken == 2
    assert world.commands.take_progress() == []
    loader.go.set()
    last = await world.said()
    # The engine was asked what it serves before the end is told.
    assert (last.model.done, world.refreshed, last.command_id) == (True, 1, "1")
    assert loader.asked == [("load", "m", "/a")]


async def test_an_unload() -> None:
    world = World(Loader())
    request = pb.UnloadModelRequest(node_id="n", model="m")
    world.commands.start(pb.NodeCommand(command_id="1", unload_model=request))
    assert (await world.said()).model.done
    assert world.refreshed == 1


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (MeshError(errors_pb2.ERROR_REASON_UNSUPPORTED, "no", param="model"), "UNSUPPORTED"),
        (EngineConnectionError("gone"), "ENGINE_UNAVAILABLE"),
        (RuntimeError("bug"), "INTERNAL"),
    ],
)
async def test_a_failure_is_told_with_its_reason(outcome: Exception, reason: str) -> None:
    loader = Loader(outcome)
    world = World(loader)
    world.commands.start(load())
    loader.go.set()
    failure = (await world.said()).failure
    assert errors_pb2.ErrorReason.Name(failure.reason) == f"ERROR_REASON_{reason}"
    assert (failure.param == "model") == (reason == "UNSUPPORTED")
    assert world.refreshed == 0


@pytest.mark.parametrize("end", ["cancel", "cut_off"])
async def test_a_command_that_nobody_waits_for_stops(end: str) -> None:
    loader = Loader()
    world = World(loader)
    world.commands.start(load())
    await world.said()
    world.commands.cancel("another")
    await asyncio.sleep(0)
    assert not loader.cancelled
    if end == "cancel":
        world.commands.cancel("1")
    else:
        world.commands.cut_off()
    for _ in range(5):
        await asyncio.sleep(0)
    assert loader.cancelled
    assert world.commands.take_progress() == []


async def test_commands_are_bounded() -> None:
    world = World(Loader())
    for number in range(17):
        world.commands.start(load(str(number)))
    refused = [p for p in world.commands.take_progress() if p.HasField("failure")]
    assert [p.command_id for p in refused] == ["16"]
    world.commands.cut_off()


async def test_an_engine_that_loads_nothing_says_so() -> None:
    world = World(NoLoader("tgi"))
    world.commands.start(load())
    failure = (await world.said()).failure
    assert failure.reason == errors_pb2.ERROR_REASON_UNSUPPORTED
    assert "`tgi`" in failure.message


class FakeRelay:
    """Answers after the turns that the clock makes, and fails every fourth time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.bodies: list[dict] = []
        self.at_once = self.most_at_once = 0

    def admit(self, caller, model):
        assert not caller.key_id
        if model != "m":
            raise MeshError(errors_pb2.ERROR_REASON_MODEL_NOT_FOUND, "no such model")
        return EngineModel("m", True, False)

    async def stream_parsed(self, caller, request, on_objects):
        self.bodies.append(request.fields)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        number = len(self.bodies)
        await asyncio.sleep(0)
        try:
            if number % 4 == 0:
                raise MeshError(errors_pb2.ERROR_REASON_OVERLOADED, "full")
            await on_objects([{"choices": [{"delta": {"role": "assistant", "content": ""}}]}])
            self.now += 1.0
            await on_objects([{"choices": [{"delta": {"content": "x"}}]}])
            self.now += 1.0
            return Tokens(prompt=10, completion=5), None
        finally:
            self.at_once -= 1


async def test_a_benchmark_sends_what_it_was_asked_to() -> None:
    relay = FakeRelay()
    told: list[pb.BenchmarkNodeResponse] = []
    request = pb.BenchmarkNodeRequest(
        node_id="n", model="m", requests=8, concurrency=3, prompt_tokens=7, output_tokens=9
    )
    last = await EngineBenchmark(relay, lambda: relay.now).run(request, told.append)
    assert (last.completed, last.failed, relay.most_at_once) == (6, 2, 3)
    # On the way it was told no more than every half second.
    assert 0 < len(told) <= 8
    assert not any(progress.HasField("result") for progress in told)
    result = last.result
    prompts = [body["messages"][0]["content"] for body in relay.bodies]
    assert {len(prompt.split()) for prompt in prompts} == {8}
    assert len({prompt.split()[0] for prompt in prompts}) == 8
    assert {body["max_tokens"] for body in relay.bodies} == {9}
    assert result.first_failure == "full"
    assert (result.prompt_tokens, result.output_tokens, result.duration) == (60, 30, 12.0)
    assert (result.requests_per_second, result.output_tokens_per_second) == (0.5, 2.5)
    assert result.time_to_first_token.p50 >= 1.0


async def test_a_benchmark_of_no_model_is_refused() -> None:
    request = pb.BenchmarkNodeRequest(node_id="n", model="other")
    with pytest.raises(MeshError) as caught:
        await EngineBenchmark(FakeRelay()).run(request, lambda progress: None)
    assert caught.value.reason_name == "MODEL_NOT_FOUND"


def test_a_count_that_one_answer_lacks_is_unknown_for_all() -> None:
    measured = benchmark_module.Measured()
    measured.answered(1.0, None, 10, 5)
    measured.answered(1.0, None, 10, None)
    result = measured.result(2.0)
    assert result.prompt_tokens == 20
    assert not result.HasField("output_tokens")
    assert not result.HasField("output_tokens_per_second")
    assert not result.HasField("time_to_first_token")


def test_percentiles_are_by_nearest_rank() -> None:
    found = percentiles([float(n) for n in range(100, 0, -1)])
    assert (found.p50, found.p95, found.p99) == (50, 95, 99)
    assert percentiles([7.0]).p99 == 7.0


async def test_a_node_shows_the_nonce_of_its_latest_stream() -> None:
    identity = Identity("n")
    servicer = IdentityServicer(identity)
    with pytest.raises(MeshError) as caught:
        await servicer.Identify(None, None)
    assert caught.value.reason_name == "FAILED_PRECONDITION"
    identity.expect()
    asking = asyncio.create_task(servicer.Identify(None, None))
    await asyncio.sleep(0)
    # The question overtook the nonce.
    identity.take(b"1")
    answer = await asking
    assert (answer.node_id, answer.nonce) == ("n", b"1")
    identity.expect()
    identity.take(b"2")
    assert (await servicer.Identify(None, None)).nonce == b"2"
