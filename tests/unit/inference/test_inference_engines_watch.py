"""How the watch treats what engines say; no sockets: the engine is a script."""

import pytest

from services.inference.engine_watch import EngineWatch
from services.inference.engines.dialect import Description, EngineModel, Load
from services.inference.state import EngineState
from services.inference.transport_errors import EngineConnectError


class Scripted:
    name = "scripted"
    probe_interval_s = 0.0

    def __init__(self, *loads, models=("m",)):
        self._loads = list(loads)
        self._models = models
        self.described = 0

    async def describe(self, client):
        self.described += 1
        return Description("1", tuple(EngineModel(n, True, False) for n in self._models))

    async def probe(self, client):
        load = self._loads.pop(0)
        if isinstance(load, Exception):
            raise load
        return load


class Client:
    def __init__(self):
        self.hurried = []

    def hurry(self, silence_s):
        self.hurried.append(silence_s)


async def watched(engine, probes):
    state = EngineState()

    async def on_probe():
        pass

    watch = EngineWatch(engine, Client(), state, on_probe)
    for _ in range(probes):
        await watch.probe()
    return watch, state


async def test_an_engine_that_started_again_has_an_empty_cache():
    engine = Scripted(Load(work=5), Load(work=9), Load(work=0))
    watch, state = await watched(engine, 2)
    assert state.engine_generation == 0
    await watch.probe()
    assert state.engine_generation == 1


async def test_one_that_says_nothing_of_its_life_is_new_after_it_was_away():
    engine = Scripted(Load(), EngineConnectError("refused"), Load())
    watch, state = await watched(engine, 2)
    assert not state.is_up
    assert watch.load == Load()
    await watch.probe()
    assert (state.is_up, state.engine_generation) == (True, 1)


async def test_one_that_was_only_slow_is_the_same():
    _, state = await watched(Scripted(Load(), TimeoutError(), Load()), 3)
    assert (state.is_up, state.engine_generation) == (True, 0)


async def test_while_it_is_down_its_silence_is_not_borne_for_long():
    down = EngineConnectError("refused")
    watch, _ = await watched(Scripted(Load(), down, down, Load()), 4)
    assert watch._client.hurried[0] is None
    assert watch._client.hurried[1] == watch._client.hurried[2] <= 10
    assert watch._client.hurried[3] is None


async def test_a_cloud_is_not_asked_at_every_report():
    engine = Scripted(Load(), Load())
    engine.probe_interval_s = 30.0
    watch, state = await watched(engine, 5)
    assert (len(engine._loads), engine.described) == (1, 1)
    # A request that found it down makes the next probe a true one.
    state.set_up(False)
    await watch.probe()
    assert engine._loads == []
    assert state.is_up


@pytest.mark.parametrize(
    ("models", "served"),
    [
        (("m", "/models/llama", "a b", "x" * 201), ["m"]),
        (("org/model:7b@q4+x_1.0",), ["org/model:7b@q4+x_1.0"]),
        (("/models/llama",), []),
        ((), []),
        (tuple(f"m{i}" for i in range(256)), [f"m{i}" for i in range(256)]),
        (tuple(f"m{i}" for i in range(257)), []),
    ],
)
async def test_what_the_mesh_can_serve_of_it(models, served):
    _, state = await watched(Scripted(Load(), models=models), 1)
    assert list(state.models) == served
    assert state.is_up is bool(served)
