"""The life of nodes and models: joins, leases, states, drains, and what is written of them."""

import asyncio
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from infermesh.registry.v1 import node_service_pb2 as pb
from infermesh.registry.v1 import resources_pb2 as r
from services.kit.errors import MeshError, StoreUnavailableError
from services.registry import mesh as mesh_module
from services.registry.address import canonical_address
from services.registry.attachment import Attachment, End
from services.registry.journal import Journal
from services.registry.mesh import Mesh
from services.registry.store import ModelRow, NodeRow
from services.registry.watchers import Watchers

LEASE_S = 4.0


class MemoryStore:
    """Keeps rows in memory, and can be away."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeRow] = {}
        self.models: dict[str, ModelRow] = {}
        self.away = False
        self.writes = 0

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailableError("away")

    async def load(self) -> tuple[Sequence[NodeRow], Sequence[ModelRow]]:
        self._check()
        return list(self.nodes.values()), list(self.models.values())

    async def save(
        self,
        nodes: Sequence[NodeRow],
        models: Sequence[ModelRow],
        gone_node_ids: Collection[str] = (),
    ) -> None:
        self._check()
        await asyncio.sleep(0)
        self.writes += 1
        self.nodes.update({row.node_id: row for row in nodes})
        self.models.update({row.name: row for row in models})
        for node_id in gone_node_ids:
            self.nodes.pop(node_id, None)

    async def delete_model(self, name: str) -> None:
        self._check()
        self.models.pop(name, None)


class World:
    """A mesh with a store behind it and a clock that a test turns."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.time_s = 100.0
        self.store = store or MemoryStore()
        self.journal = Journal(self.store)
        self.mesh = Mesh(
            self.journal,
            Watchers(),
            lease_s=LEASE_S,
            clock=lambda: self.time_s,
            now=lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.time_s),
        )

    async def join(self, node_id: str = "a", port: int = 1, *models: str) -> Attachment:
        return await self.mesh.join(
            pb.JoinNode(
                node_id=node_id,
                address=f"127.0.0.1:{port}",
                engine="llamacpp",
                models=[
                    r.ServedModel(
                        name=name, capabilities=[r.CAPABILITY_CHAT], context_length=1024 * port
                    )
                    for name in models or ("m",)
                ],
            )
        )

    def report(self, attachment: Attachment, up: bool = True, draining: bool = False) -> None:
        self.mesh.report(attachment, pb.NodeReport(engine_up=up, draining=draining))

    def state(self, node_id: str = "a") -> str:
        return r.NodeState.Name(self.mesh.node(node_id).state).removeprefix("NODE_STATE_")

    async def flush(self) -> None:
        await self.journal.finish(self.mesh.rows)


def reason(caught: pytest.ExceptionInfo[MeshError]) -> str:
    return caught.value.reason_name


async def test_a_lease_runs_out_after_silence_and_no_sooner() -> None:
    world = World()
    attachment = await world.join()
    for _ in range(20):
        world.time_s += 0.5
        world.report(attachment)
        assert world.mesh.expire() > 0
    assert world.state() == "READY"
    world.time_s += LEASE_S - 0.1
    assert world.mesh.expire() == pytest.approx(0.1)
    assert world.state() == "READY"
    world.time_s += 0.1
    world.mesh.expire()
    assert world.state() == "OFFLINE"
    assert not world.mesh.node("a").HasField("load")
    # It was only slow: the next report brings it back.
    world.report(attachment)
    assert world.state() == "READY"


async def test_the_next_look_is_never_later_than_a_lease() -> None:
    world = World()
    assert world.mesh.expire() == LEASE_S
    await world.join()
    world.time_s += 1.0
    assert world.mesh.expire() == pytest.approx(LEASE_S - 1.0)


async def test_a_registry_that_stood_still_blames_nobody() -> None:
    world = World()
    world.report(await world.join())
    world.mesh.expire()
    world.time_s += 60
    world.mesh.expire()
    assert world.state() == "READY"
    world.time_s += LEASE_S
    world.mesh.expire()
    assert world.state() == "OFFLINE"


async def test_states_follow_reports() -> None:
    world = World()
    attachment = await world.join()
    assert world.state() == "ENGINE_DOWN"
    for up, draining, state in (
        (True, False, "READY"),
        (False, False, "ENGINE_DOWN"),
        (True, True, "DRAINING"),
        (False, True, "DRAINING"),
        (True, False, "READY"),
    ):
        world.report(attachment, up, draining)
        assert world.state() == state
    world.mesh.leave(attachment)
    assert world.state() == "OFFLINE"


async def test_a_broken_stream_changes_no_state_and_a_new_one_neither() -> None:
    world = World()
    first = await world.join()
    world.report(first)
    world.mesh.detach(first)
    assert world.state() == "READY"
    await world.join()
    assert world.state() == "READY"


async def test_a_replaced_stream_has_no_say() -> None:
    world = World()
    first = await world.join()
    second = await world.join("a", 2)
    assert first.end is End.REPLACED
    world.report(second)
    world.report(first, up=False)
    world.mesh.leave(first)
    world.mesh.detach(first)
    assert world.state() == "READY"
    assert second.end is None


async def test_an_address_changes_hands_only_without_a_stream() -> None:
    world = World()
    first = await world.join("a", 1)
    world.report(first)
    with pytest.raises(MeshError) as caught:
        await world.join("b", 1)
    assert reason(caught) == "INVALID_ARGUMENT"
    assert "b" not in world.store.nodes
    world.mesh.detach(first)
    await world.join("b", 1)
    assert world.state("a") == "OFFLINE"


async def test_a_node_whose_lease_ran_out_loses_its_address_for_good() -> None:
    world = World()
    first = await world.join("a", 1)
    world.time_s += LEASE_S
    world.mesh.expire()
    await world.join("b", 1)
    assert first.end is End.REPLACED
    world.report(first)
    assert world.state("a") == "OFFLINE"


async def test_an_operators_drain_outlives_everything_but_resume() -> None:
    world = World()
    first = await world.join()
    world.report(first)
    node = await world.mesh.set_drain("a", True)
    assert node.state == r.NODE_STATE_DRAINING
    assert (await first.next_message()).drain_changed.draining
    assert world.store.nodes["a"].draining
    world.report(first)
    world.mesh.leave(first)
    assert world.state() == "OFFLINE"

    await world.flush()
    restarted = World(world.store)
    restarted.mesh.restore(*await world.store.load())
    second = await restarted.join()
    assert (await second.next_message()).drain_changed.draining
    restarted.report(second)
    assert restarted.state() == "DRAINING"
    await restarted.mesh.set_drain("a", False)
    assert not (await second.next_message()).drain_changed.draining
    assert restarted.state() == "READY"


async def test_draining_an_offline_node_leaves_it_offline() -> None:
    world = World()
    world.mesh.leave(await world.join())
    await world.mesh.set_drain("a", True)
    assert world.state() == "OFFLINE"
    with pytest.raises(MeshError) as caught:
        await world.mesh.set_drain("nobody", True)
    assert reason(caught) == "NOT_FOUND"


async def test_a_restart_gives_nodes_that_were_online_a_fresh_lease() -> None:
    world = World()
    world.report(await world.join("a", 1))
    world.mesh.leave(await world.join("gone", 2))
    await world.flush()
    restarted = World(world.store)
    restarted.time_s = 5000.0
    restarted.mesh.restore(*await world.store.load())
    assert (restarted.state("a"), restarted.state("gone")) == ("READY", "OFFLINE")
    assert restarted.mesh.catalogue.get("m").ready_node_count == 1
    restarted.mesh.expire()
    restarted.time_s += LEASE_S
    restarted.mesh.expire()
    assert restarted.state("a") == "OFFLINE"


async def test_models_follow_the_nodes_that_serve_them() -> None:
    world = World()
    small, big = await world.join("a", 1), await world.join("b", 2)
    catalogue = world.mesh.catalogue
    assert catalogue.get("m").context_length == 2048
    world.report(small)
    assert catalogue.get("m").ready_node_count == 1
    world.mesh.leave(big)
    assert catalogue.get("m").context_length == 1024
    await world.join("a", 1, "other")
    # Nobody serves it any more: it stays, as it was last known.
    assert (catalogue.get("m").context_length, catalogue.get("m").ready_node_count) == (1024, 0)
    assert not catalogue.is_served("m")
    assert catalogue.get("other").ready_node_count == 1


async def test_a_served_model_cannot_be_deleted() -> None:
    world = World()
    attachment = await world.join()
    with pytest.raises(MeshError) as caught:
        await world.mesh.delete_model("m")
    assert reason(caught) == "FAILED_PRECONDITION"
    world.mesh.leave(attachment)
    await world.mesh.delete_model("m")
    assert "m" not in world.store.models
    with pytest.raises(MeshError) as caught:
        await world.mesh.delete_model("m")
    assert reason(caught) == "MODEL_NOT_FOUND"
    # The node that listed it comes back, and so does the model.
    world.report(await world.join())
    assert world.mesh.catalogue.get("m").ready_node_count == 1


async def test_reports_write_nothing_and_changes_do() -> None:
    world = World()
    attachment = await world.join()
    world.report(attachment)
    await world.flush()
    writes = world.store.writes
    for _ in range(10):
        world.report(attachment)
        await world.flush()
    assert world.store.writes == writes
    world.report(attachment, up=False)
    await world.flush()
    assert world.store.writes == writes + 1
    assert world.store.nodes["a"].state == r.NODE_STATE_ENGINE_DOWN


async def test_without_the_store_only_what_is_new_fails() -> None:
    world = World()
    attachment = await world.join()
    world.report(attachment)
    await world.flush()
    world.store.away = True
    for wanted in (
        world.join("new", 2),
        world.join("a", 1, "new-model"),
        world.mesh.set_drain("a", True),
    ):
        with pytest.raises(MeshError) as caught:
            await wanted
        assert reason(caught) == "STORE_UNAVAILABLE"
    assert [node.node_id for node in world.mesh.nodes()] == ["a"]
    assert world.state() == "READY"
    # A known node joins again, and what changes meanwhile is written once the store is back.
    again = await world.join()
    world.report(again, up=False)
    await world.flush()
    assert world.store.nodes["a"].state == r.NODE_STATE_READY
    world.store.away = False
    await world.flush()
    assert world.store.nodes["a"].state == r.NODE_STATE_ENGINE_DOWN


async def test_bad_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    for address in ("host.test:80", "localhost:1"):
        with pytest.raises(MeshError) as caught:
            await world.mesh.join(pb.JoinNode(node_id="a", address=address))
        assert (reason(caught), caught.value.param) == ("INVALID_ARGUMENT", "join.address")
    monkeypatch.setattr(mesh_module, "MAX_NODES", 1)
    await world.join("a", 1)
    with pytest.raises(MeshError) as caught:
        await world.join("b", 2)
    assert reason(caught) == "FAILED_PRECONDITION"
    await world.join("a", 3)


async def test_only_an_offline_node_is_deleted_and_then_it_is_gone_everywhere() -> None:
    world = World()
    attachment = await world.join()
    world.report(attachment)
    watcher = world.mesh.watchers.add()
    with pytest.raises(MeshError) as caught:
        await world.mesh.delete_node("a")
    assert reason(caught) == "FAILED_PRECONDITION"
    world.mesh.leave(attachment)
    await world.flush()
    await world.mesh.delete_node("a")
    assert world.mesh.nodes() == []
    assert world.store.nodes == {}
    changes = await watcher.take()
    assert changes
    assert (changes.nodes, changes.deleted_nodes) == (set(), {"a"})
    with pytest.raises(MeshError) as caught:
        await world.mesh.delete_node("a")
    assert reason(caught) == "NOT_FOUND"
    # What it served stays in the catalogue until it is deleted too.
    assert not world.mesh.catalogue.is_served("m")
    await world.flush()
    assert world.store.nodes == {}


async def test_a_deleted_node_that_was_only_slow_joins_anew() -> None:
    world = World()
    slow = await world.join()
    await world.mesh.set_drain("a", True)
    world.time_s += LEASE_S
    world.mesh.expire()
    watcher = world.mesh.watchers.add()
    await world.mesh.delete_node("a")
    assert isinstance(slow.end, MeshError)
    assert slow.end.reason_name == "FAILED_PRECONDITION"
    # Its stream ends a moment later and has no say any more.
    world.report(slow)
    world.mesh.leave(slow)
    world.mesh.detach(slow)
    again = await world.join()
    world.report(again)
    assert world.state() == "READY"
    changes = await watcher.take()
    assert changes
    assert (changes.nodes, changes.deleted_nodes) == ({"a"}, set())
    await world.flush()
    assert not world.store.nodes["a"].draining


async def test_without_the_store_no_node_is_deleted() -> None:
    world = World()
    world.mesh.leave(await world.join())
    world.store.away = True
    with pytest.raises(MeshError) as caught:
        await world.mesh.delete_node("a")
    assert reason(caught) == "STORE_UNAVAILABLE"
    assert world.state() == "OFFLINE"


async def test_a_node_that_joins_while_it_is_deleted_stays() -> None:
    world = World()
    world.mesh.leave(await world.join())
    await world.flush()
    deleting = asyncio.create_task(world.mesh.delete_node("a"))
    await asyncio.sleep(0)
    attachment = await world.join()
    with pytest.raises(MeshError) as caught:
        await deleting
    assert reason(caught) == "FAILED_PRECONDITION"
    assert attachment.end is None
    await world.flush()
    assert world.store.nodes["a"].state == r.NODE_STATE_ENGINE_DOWN


async def test_a_drain_of_a_node_that_is_deleted_meanwhile_leaves_no_row() -> None:
    world = World()
    world.mesh.leave(await world.join())
    await world.flush()
    deleting = asyncio.create_task(world.mesh.delete_node("a"))
    draining = asyncio.create_task(world.mesh.set_drain("a", True))
    await deleting
    with pytest.raises(MeshError) as caught:
        await draining
    assert reason(caught) == "NOT_FOUND"
    assert "a" in world.store.nodes
    await world.flush()
    assert world.store.nodes == {}


async def test_at_the_bound_the_node_that_is_offline_longest_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mesh_module, "MAX_NODES", 3)
    world = World()
    attachments = {}
    for port, node_id in enumerate(("old", "older", "live"), 1):
        attachments[node_id] = await world.join(node_id, port)
    for node_id in ("older", "old", "live"):
        world.time_s += 1
        world.report(attachments[node_id])
    world.mesh.leave(attachments["old"])
    world.mesh.leave(attachments["older"])
    watcher = world.mesh.watchers.add()

    await world.join("new", 4)
    assert [node.node_id for node in world.mesh.nodes()] == ["live", "new", "old"]
    changes = await watcher.take()
    assert changes
    assert changes.deleted_nodes == {"older"}
    await world.join("newer", 5)
    await world.flush()
    assert world.store.nodes.keys() == {"live", "new", "newer"}
    # Nobody who is there makes room, and what was refused leaves nothing behind.
    with pytest.raises(MeshError) as caught:
        await world.join("newest", 6)
    assert reason(caught) == "FAILED_PRECONDITION"
    await world.flush()
    assert world.store.nodes.keys() == {"live", "new", "newer"}


async def test_of_two_that_join_for_the_last_place_the_late_one_leaves_no_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mesh_module, "MAX_NODES", 1)
    world = World()
    outcomes = await asyncio.gather(world.join("a", 1), world.join("b", 2), return_exceptions=True)
    assert [isinstance(outcome, MeshError) for outcome in outcomes] == [False, True]
    await world.flush()
    assert world.store.nodes.keys() == {"a"}


async def test_watchers_hold_names_not_messages() -> None:
    world = World()
    attachment = await world.join()
    watcher = world.mesh.watchers.add()
    for _ in range(1000):
        world.report(attachment)
    world.mesh.leave(attachment)
    changes = await watcher.take()
    assert changes
    assert (changes.nodes, changes.models) == ({"a"}, {"m"})
    assert not watcher.wake.is_set()
    await world.mesh.delete_model("m")
    changes = await watcher.take()
    assert changes
    assert (changes.models, changes.deleted_models) == (set(), {"m"})

    waiting = asyncio.create_task(watcher.take())
    await asyncio.sleep(0)
    world.mesh.close()
    assert await waiting is None
    world.mesh.watchers.remove(watcher)
    assert len(world.mesh.watchers) == 0


async def test_a_deleted_model_that_returns_is_not_told_as_deleted() -> None:
    world = World()
    watcher = world.mesh.watchers.add()
    world.mesh.watchers.model_deleted("m")
    world.mesh.watchers.model_changed("m")
    changes = await watcher.take()
    assert changes
    assert (changes.models, changes.deleted_models) == ({"m"}, set())


async def test_stopping_ends_all_streams() -> None:
    world = World()
    attachment = await world.join()
    world.mesh.close()
    assert await attachment.next_message() is None
    assert attachment.end is End.STOPPING


@pytest.mark.parametrize(
    ("address", "canonical"),
    [
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
        ("[2001:DB8::1]:80", "[2001:db8::1]:80"),
    ],
)
def test_addresses_have_one_form(address, canonical):
    assert canonical_address(address) == canonical


@pytest.mark.parametrize(
    "address",
    ["localhost:80", "127.0.0.1:0", "0.0.0.0:80", "224.0.0.1:80", "[fe80::1%a b]:80", "[::]:80"],
)
def test_an_address_that_envoy_would_refuse_is_refused(address):
    with pytest.raises(MeshError):
        canonical_address(address)


async def test_a_node_is_pushed_out_by_nobody_who_has_another_key() -> None:
    world = World()
    join = pb.JoinNode(node_id="a", address="127.0.0.1:1", engine="sim")
    first = await world.mesh.join(join, "key-1")
    other = pb.JoinNode(node_id="a", address="127.0.0.1:2", engine="sim")
    with pytest.raises(MeshError) as caught:
        await world.mesh.join(other, "key-2")
    assert reason(caught) == "FAILED_PRECONDITION"
    assert first.end is None
    assert world.mesh.node("a").address == "127.0.0.1:1"
    # The same key comes back at once; a new one once the old stream is gone.
    again = await world.mesh.join(join, "key-1")
    assert first.end is End.REPLACED
    world.mesh.detach(again)
    await world.mesh.join(other, "key-2")
    assert world.mesh.node("a").address == "127.0.0.1:2"
