"""What the registry does about what nodes say: who is suspect, and what cannot be true."""

from collections import Counter

import pytest

from infermesh.registry.v1 import node_service_pb2 as pb
from infermesh.registry.v1 import resources_pb2 as r
from services.kit.errors import MeshError
from services.registry import catalogue, refusals, suspects
from services.registry.address import check_faces_mesh
from services.registry.report_rules import check_load
from services.registry.suspects import Suspects
from unit.registry.test_registry_mesh import World

LIE = refusals.somebody_else("n", "10.0.0.1:1")


def test_three_lies_within_a_minute_make_a_suspect_for_a_minute() -> None:
    now = [0.0]
    them = Suspects(lambda: now[0])
    for at in (0.0, 30.0, 59.0):
        now[0] = at
        them.check("n", "n")
        them.note("n", LIE)
    them.check("another", "another")
    with pytest.raises(MeshError) as caught:
        them.check("n", "n")
    assert caught.value.reason_name == "FAILED_PRECONDITION"
    assert LIE.message in caught.value.message
    assert caught.value.metadata["retry_after_s"] == "60"
    now[0] = 118.9
    with pytest.raises(MeshError):
        them.check("n", "n")
    now[0] = 119.0
    them.check("n", "n")
    # The slate is clean: one more lie makes no suspect.
    them.note("n", LIE)
    them.check("n", "n")


def test_lies_that_are_far_apart_make_none() -> None:
    now = [0.0]
    them = Suspects(lambda: now[0])
    for _ in range(10):
        now[0] += 31.0
        them.check("n", "n")
        them.note("n", LIE)


def test_the_memory_of_lies_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "_MAX_SUSPECTS", 2)
    them = Suspects(lambda: 0.0)
    for name, count in Counter(old=3, young=3, new=3).items():
        for _ in range(count):
            them.note(name, LIE)
    them.check("old", "old")
    for name in ("young", "new"):
        with pytest.raises(MeshError):
            them.check(name, name)


@pytest.mark.parametrize(
    ("address", "source", "is_good"),
    [
        ("127.0.0.1:1", "", True),
        ("127.0.0.1:1", "127.0.0.9", True),
        ("[::1]:1", "::1", True),
        ("127.0.0.1:1", "10.0.0.7", False),
        ("[::1]:1", "10.0.0.7", False),
        ("127.8.8.8:1", "fd00::1", False),
        # A node behind a router or in another network of the machine's.
        ("10.0.0.7:1", "192.168.0.1", True),
    ],
)
def test_loopback_belongs_to_the_meshs_own_machine(address, source, is_good) -> None:
    if is_good:
        check_faces_mesh(address, source)
        return
    with pytest.raises(refusals.UntrueError) as caught:
        check_faces_mesh(address, source)
    assert caught.value.param == "join.address"


def test_counters_only_grow() -> None:
    before = r.NodeLoad(expected_cached_tokens=1, cached_tokens=2, prompt_tokens=5)
    check_load(before, None)
    check_load(before, before)
    for field in ("expected_cached_tokens", "cached_tokens", "prompt_tokens"):
        after = r.NodeLoad()
        after.CopyFrom(before)
        setattr(after, field, 0)
        with pytest.raises(refusals.UntrueError) as caught:
            check_load(after, before)
        assert caught.value.param
    with pytest.raises(refusals.UntrueError):
        check_load(r.NodeLoad(), r.NodeLoad(engine_generation=1))


async def test_a_report_that_is_refused_changes_nothing() -> None:
    world = World()
    attachment = await world.join()
    world.mesh.report(attachment, pb.NodeReport(engine_up=True, load=r.NodeLoad(running=1)))
    bad = pb.NodeReport(engine_up=False, load=r.NodeLoad(cached_tokens=1))
    with pytest.raises(MeshError):
        world.mesh.report(attachment, bad)
    assert (world.state(), world.mesh.node("a").load.running) == ("READY", 1)
    world.mesh.eject(attachment, "it lied")
    assert world.state() == "OFFLINE"


async def test_a_node_that_serves_other_models_now() -> None:
    world = World()
    attachment = await world.join("a", 1, "m", "n")
    world.report(attachment)
    watcher = world.mesh.watchers.add()
    world.mesh.update(
        attachment, pb.NodeUpdate(engine_version="2", models=[r.ServedModel(name="o")])
    )
    node = world.mesh.node("a")
    assert (node.engine_version, [m.name for m in node.models]) == ("2", ["o"])
    ready = {m.name: m.ready_node_count for m in world.mesh.catalogue.all()}
    assert ready == {"m": 0, "n": 0, "o": 1}
    changes = await watcher.take()
    assert changes
    assert changes.models == {"m", "n", "o"}
    await world.flush()
    assert world.store.models.keys() == {"m", "n", "o"}
    # Its engine may drop everything; the node stays.
    world.mesh.update(attachment, pb.NodeUpdate())
    assert world.state() == "READY"
    assert not world.mesh.catalogue.is_served("o")


async def test_a_replaced_stream_updates_nothing() -> None:
    world = World()
    first = await world.join()
    await world.join()
    world.mesh.update(first, pb.NodeUpdate())
    assert world.mesh.catalogue.is_served("m")


async def test_the_catalogue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MAX_MODELS", 2)
    world = World()
    attachment = await world.join("a", 1, "m", "n")
    more = pb.NodeUpdate(models=[r.ServedModel(name="o")])
    with pytest.raises(MeshError) as caught:
        world.mesh.update(attachment, more)
    assert caught.value.reason_name == "FAILED_PRECONDITION"
    assert world.mesh.catalogue.is_served("m")
    with pytest.raises(MeshError):
        await world.join("b", 2, "o")
    await world.join("b", 2, "m")
