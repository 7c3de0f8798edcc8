import orjson
import pytest

from services.inference import extensions
from services.inference.fair_queue import Priority
from services.inference.requests import parse, with_fields
from services.kit.errors import MeshError

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ALL = {
    "preferred_framework": "vllm",
    "fallback_models": ["a", "b"],
    "enable_caching": False,
    "optimization_level": "low",
    "priority": "high",
    "session_id": "s" * 200,
}


def request(**fields):
    return parse("chat", orjson.dumps(CHAT | fields))


def test_all_of_them_are_known():
    assert ALL.keys() == extensions.NAMES


def test_engines_do_not_get_them():
    assert orjson.loads(with_fields(request(**ALL, seed=1), {})) == CHAT | {"seed": 1}
    changed = with_fields(request(**ALL), {"stream": True})
    assert orjson.loads(changed) == CHAT | {"stream": True}


@pytest.mark.parametrize("name", sorted(ALL))
def test_null_is_nothing_and_does_not_reach_engines_either(name):
    assert orjson.loads(with_fields(request(**{name: None}), {})) == CHAT


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (None, Priority.NORMAL),
        ("low", Priority.LOW),
        ("normal", Priority.NORMAL),
        ("high", Priority.HIGH),
    ],
)
def test_the_priority(said, meant):
    assert request(priority=said).priority is meant
    assert request().priority is Priority.NORMAL


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"preferred_framework": 1}, "preferred_framework"),
        ({"preferred_framework": "x" * 65}, "preferred_framework"),
        ({"fallback_models": "a"}, "fallback_models"),
        ({"fallback_models": ["m"] * 9}, "fallback_models"),
        ({"fallback_models": ["a", ""]}, "fallback_models[1]"),
        ({"fallback_models": ["a", 1]}, "fallback_models[1]"),
        ({"fallback_models": ["a" * 201]}, "fallback_models[0]"),
        ({"enable_caching": "yes"}, "enable_caching"),
        ({"enable_caching": 1}, "enable_caching"),
        ({"optimization_level": "turbo"}, "optimization_level"),
        ({"optimization_level": ["low"]}, "optimization_level"),
        ({"priority": "urgent"}, "priority"),
        ({"priority": 0}, "priority"),
        ({"priority": ["high"]}, "priority"),
        ({"session_id": 7}, "session_id"),
        ({"session_id": "s" * 201}, "session_id"),
    ],
)
def test_what_is_wrong_is_named(fields, param):
    with pytest.raises(MeshError) as caught:
        request(**fields)
    assert (caught.value.reason_name, caught.value.param) == ("INVALID_ARGUMENT", param)


def test_the_engine_reads_the_name_of_the_model_that_answers():
    asked = request()
    asked.model = "other"
    assert orjson.loads(with_fields(asked, {})) == CHAT | {"model": "other"}
    assert with_fields(asked, {}).count(b'"model"') == 1
