"""What a node tells the registry of itself, its engine, and its answers."""

import math

import pytest

from infermesh.registry.v1 import node_service_pb2, resources_pb2
from services.inference.answers import Answers
from services.inference.engines.dialect import Description, EngineModel, Load, Tokens
from services.inference.reports import NodeFacts, join_of, node_load, served_model, update_of
from services.inference.state import EngineState
from services.kit.guard import validate


def state_with(**fields: object) -> EngineState:
    state = EngineState()
    for name, value in fields.items():
        setattr(state, name, value)
    return state


def test_what_nobody_knows_is_not_reported():
    load = node_load(Load(), state_with(in_flight=3))
    # The proxy's own count stands in for the engine's.
    assert load.running == 3
    assert load.tokens_per_second == 0
    for field in (
        *("queued", "kv_use", "slots", "time_to_first_token", "kv_capacity_tokens"),
        *("expected_cached_tokens", "cached_tokens", "prompt_tokens"),
    ):
        assert not load.HasField(field), field


def test_all_that_is_known_is_reported():
    state = state_with(in_flight=9, waiting=5, engine_generation=2)
    state.answers.note(Tokens(100, 10, 60), time_to_first_token_s=0.5, expected_share=0.75)
    load = node_load(
        Load(
            running=1,
            queued=2,
            kv_use=0.5,
            slots=4,
            kv_capacity_tokens=8192,
            loaded_adapters=("a", "b"),
        ),
        state,
    )
    # What waits in the proxy waits for the engine too.
    assert (load.running, load.queued, load.kv_use, load.slots) == (1, 7, 0.5, 4)
    assert (load.kv_capacity_tokens, list(load.loaded_adapters)) == (8192, ["a", "b"])
    assert load.time_to_first_token == 0.5
    assert (load.expected_cached_tokens, load.cached_tokens, load.prompt_tokens) == (75, 60, 100)
    assert load.engine_generation == 2
    validate(load)


def test_the_operator_knows_better_how_many_run_at_a_time():
    state = EngineState(slots=12)
    assert node_load(Load(), state).slots == 12
    assert node_load(Load(slots=4), state).slots == 12


@pytest.mark.parametrize(
    "odd",
    [
        Load(running=-1, queued=-1, slots=-1, kv_capacity_tokens=-1),
        Load(running=2_000_000, queued=2_000_000, slots=2_000_000),
        Load(kv_use=math.nan),
        Load(kv_use=-0.1),
    ],
)
def test_what_no_engine_can_mean_is_unknown(odd):
    load = node_load(odd, EngineState())
    validate(load)
    for field in ("queued", "kv_use", "slots", "kv_capacity_tokens"):
        assert not load.HasField(field)
    assert load.running == 0


def test_a_cache_that_is_more_than_full_is_full():
    assert node_load(Load(kv_use=1.02), EngineState()).kv_use == 1.0


def test_a_model_carries_what_it_can_and_costs():
    model = EngineModel(
        "l", can_chat=True, can_embed=False, context_length=512, base_model="b", can_see=False
    )
    served = served_model(model, (0.5, 1.5))
    assert (served.name, served.context_length, served.base_model) == ("l", 512, "b")
    assert (served.input_price, served.output_price) == (0.5, 1.5)
    assert set(served.capabilities) == {
        resources_pb2.CAPABILITY_CHAT,
        resources_pb2.CAPABILITY_TOOLS,
        resources_pb2.CAPABILITY_STRUCTURED_OUTPUT,
    }
    embedder = served_model(EngineModel("m", can_chat=False, can_embed=True))
    assert list(embedder.capabilities) == [resources_pb2.CAPABILITY_EMBEDDINGS]
    assert not embedder.HasField("input_price")
    ranker = served_model(EngineModel("r", can_chat=False, can_embed=False, can_rank=True))
    assert list(ranker.capabilities) == [resources_pb2.CAPABILITY_RERANK]


def test_a_join_says_what_the_operator_says():
    state = EngineState()
    models = tuple(EngineModel(f"m{i}", can_chat=True, can_embed=False) for i in range(300))
    state.describe(Description("v" * 300, models))
    facts = NodeFacts("n", "127.0.0.1:1", "vllm", {"zone": "a"}, 2, {"m1": (1.0, 2.0)})
    join = join_of(facts, state)
    validate(node_service_pb2.AttachNodeRequest(join=join))
    assert (join.tier, dict(join.labels), len(join.models)) == (2, {"zone": "a"}, 256)
    assert join.models[1].input_price == 1.0
    assert list(update_of(facts, state).models) == list(join.models)


def test_averages_and_sums_over_answers():
    now = [0.0]
    answers = Answers(lambda: now[0])
    assert answers.time_to_first_token_s is None
    assert answers.tokens_per_second() == 0.0
    answers.note(Tokens(10, 20, None), time_to_first_token_s=1.0, expected_share=0.5)
    # An engine that tells nothing of its cache leaves the sums unknown.
    assert (answers.expected_cached_tokens, answers.cached_tokens) == (None, None)
    answers.note(Tokens(10, 30, 4), time_to_first_token_s=2.0, expected_share=None)
    assert answers.cached_tokens is None
    assert answers.time_to_first_token_s == pytest.approx(1.2)
    answers.note(Tokens(10, None, 12), expected_share=7.0)
    sums = (answers.expected_cached_tokens, answers.cached_tokens, answers.prompt_tokens)
    assert sums == (10, 10, 10)
    now[0] = 2.0
    assert answers.tokens_per_second() == 25.0
    now[0] = 5.0
    assert answers.tokens_per_second() == 0.0


def test_the_rate_holds_a_bounded_number_of_answers():
    now = [0.0]
    answers = Answers(lambda: now[0])
    now[0] = 10.0
    for _ in range(10_000):
        answers.note(Tokens(1, 5, None))
    assert answers.tokens_per_second() == 10_000.0
