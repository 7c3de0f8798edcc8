"""Aliases: shares, stickiness, counts."""

from collections import Counter

import pytest

from infermesh.routing.v1 import split_service_pb2 as pb
from services.kit.errors import MeshError
from services.routing import store
from services.routing.contracts import check_split
from services.routing.facts import Facts
from services.routing.splits import Split
from services.routing.store import Document
from unit.routing.routing_mesh import Mesh


def message(sticky_by: int = pb.STICKINESS_NONE, **weights: int) -> pb.Split:
    targets = [pb.SplitTarget(model=model, weight=weight) for model, weight in weights.items()]
    return pb.Split(alias="prod", targets=targets, sticky_by=sticky_by)  # type: ignore[arg-type]


def test_turns_are_exact_and_even() -> None:
    split = Split(message(v1=90, v2=10))
    choices = [split.choose("") for _ in range(1000)]
    assert Counter(choices) == {"v1": 900, "v2": 100}
    for start in range(0, 1000, 10):
        assert choices[start : start + 10].count("v2") == 1


def test_a_target_of_no_weight_gets_nothing() -> None:
    split = Split(message(v1=1, v2=0, v3=2))
    assert Counter(split.choose("") for _ in range(30)) == {"v1": 10, "v3": 20}
    assert {split.choose(f"u{i}") for i in range(100)} == {"v1", "v3"}


def test_callers_keep_their_target_and_few_change_when_weights_do() -> None:
    before, after = Split(message(v1=90, v2=10)), Split(message(v1=80, v2=20))
    users = [f"user-{i}" for i in range(4000)]
    first = {user: before.choose(user) for user in users}
    assert first == {user: before.choose(user) for user in users}
    assert Counter(first.values())["v2"] == pytest.approx(400, abs=80)
    second = {user: after.choose(user) for user in users}
    assert Counter(second.values())["v2"] == pytest.approx(800, abs=100)
    # Nobody goes the other way.
    assert not [user for user in users if (first[user], second[user]) == ("v2", "v1")]


def split_mesh(split: pb.Split) -> Mesh:
    mesh = Mesh("v1", "v2")
    mesh.report("a", models=("v1",))
    mesh.report("b", models=("v2",))
    mesh.book.load([Document(store.SPLIT, "prod", split.SerializeToString())])
    return mesh


def test_an_alias_is_routed_to_its_targets_and_counted() -> None:
    mesh = split_mesh(message(v1=3, v2=1))
    outcomes = [mesh.route(Facts(model="prod")) for _ in range(8)]
    assert Counter(outcome.decision.models[0] for outcome in outcomes) == {"v1": 6, "v2": 2}
    assert all(outcome.is_renamed for outcome in outcomes)
    assert mesh.counts.take() == {("prod", "v1"): 6, ("prod", "v2"): 2}
    assert mesh.counts.take() == {}
    # Explaining takes no turn.
    assert set(mesh.explain(Facts(model="prod"))) == {"a"}
    assert mesh.counts.take() == {}


@pytest.mark.parametrize(
    ("sticky_by", "field"),
    [
        (pb.STICKINESS_KEY, "key_id"),
        (pb.STICKINESS_USER, "user"),
        (pb.STICKINESS_SESSION, "session_id"),
    ],
)
def test_a_split_is_sticky_by_what_it_says(sticky_by: int, field: str) -> None:
    mesh = split_mesh(message(sticky_by, v1=1, v2=1))
    for i in range(20):
        models = {
            mesh.route(Facts(model="prod", **{field: f"x{i}"})).decision.models[0] for _ in range(4)
        }
        assert len(models) == 1
    # Who does not say takes turns.
    models = [mesh.route(Facts(model="prod")).decision.models[0] for _ in range(4)]
    assert Counter(models) == {"v1": 2, "v2": 2}


def test_a_change_of_weights_goes_on_where_the_turns_were() -> None:
    mesh = split_mesh(message(v1=1, v2=1))
    mesh.route(Facts(model="prod"))
    same = message(v1=1, v2=1)
    mesh.book.load([Document(store.SPLIT, "prod", same.SerializeToString())])
    assert mesh.route(Facts(model="prod")).decision.models == ["v2"]
    mesh.book.load([])
    with pytest.raises(MeshError) as caught:
        mesh.route(Facts(model="prod"))
    assert caught.value.reason_name == "MODEL_NOT_FOUND"


def test_counts_that_could_not_be_stored_come_back() -> None:
    mesh = split_mesh(message(v1=1))
    mesh.route(Facts(model="prod"))
    taken = mesh.counts.take()
    mesh.route(Facts(model="prod"))
    mesh.counts.give_back(taken)
    assert mesh.counts.pending("prod", "v1") == 2


@pytest.mark.parametrize(
    ("split", "field"),
    [
        (message(v1=0, v2=0), "split.targets"),
        (message(prod=1), "split.targets[0].model"),
        (
            pb.Split(
                alias="x",
                targets=[pb.SplitTarget(model="a", weight=1), pb.SplitTarget(model="a", weight=2)],
            ),
            "split.targets[1].model",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_field(split: pb.Split, field: str) -> None:
    with pytest.raises(MeshError) as caught:
        check_split(split)
    assert caught.value.param == field


def test_a_model_without_a_node_is_renamed_to_its_fallback() -> None:
    mesh = split_mesh(message(v1=1))
    outcome = mesh.route(Facts(model="nobody-has-it", fallbacks=["v2", "v1"]))
    assert outcome.decision.models == ["v2", "v1"]
    assert outcome.is_renamed
    only = mesh.route(Facts(model="nobody-has-it", fallbacks=["v2"]))
    assert (only.decision.models, only.is_renamed) == (["v2"], True)
    assert not mesh.route(Facts(model="v1", fallbacks=["v2"])).is_renamed
