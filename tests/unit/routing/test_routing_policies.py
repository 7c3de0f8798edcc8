"""Policies: what is refused, what is built in, what a change does."""

import asyncio
from collections.abc import Sequence

import pytest

from infermesh.routing.v1 import policy_service_pb2 as pb
from services.kit.errors import MeshError
from services.routing import store
from services.routing.book import Book
from services.routing.contracts import message_of, policy_of
from services.routing.facts import Facts
from services.routing.memory_store import MemoryDocumentStore
from services.routing.policy import BUILT_IN, BY_LEVEL, DEFAULT, Hedging
from services.routing.store import Document
from unit.routing.routing_mesh import Mesh


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (pb.Policy(name="p", scorers={"queue": 1, "magic": 1}), "policy.scorers.magic"),
        (pb.Policy(name="p", scorers={"queue": -1}), "policy.scorers.queue"),
        (pb.Policy(name="p", scorers={"queue": float("nan")}), "policy.scorers.queue"),
        (pb.Policy(name="p", scorers={"queue": float("inf")}), "policy.scorers.queue"),
        (pb.Policy(name="p", scorers={"queue": 1}, picker="best"), "policy.picker"),
        (pb.Policy(name="p"), "policy.scorers"),
        (pb.Policy(name="p", scorers={"queue": 0}), "policy.scorers"),
    ],
)
def test_a_bad_policy_is_refused_with_the_field(policy: pb.Policy, field: str) -> None:
    with pytest.raises(MeshError) as caught:
        policy_of(policy)
    assert (caught.value.reason_name, caught.value.param) == ("INVALID_ARGUMENT", field)


def test_a_policy_is_read_with_its_defaults() -> None:
    message = pb.Policy(name="p", scorers={"queue": 2, "prefix": 0})
    message.allow_labels["zone"].values.append("eu")
    message.hedging.delay.FromMilliseconds(150)
    policy = policy_of(message)
    assert policy.weights == {"queue": 2}
    assert (policy.picker, policy.load_factor, policy.max_pressure) == ("best_first", 1.2, 64)
    assert policy.allow == {"zone": frozenset({"eu"})}
    assert policy.hedging == Hedging(0.15, 0.05)
    assert policy_of(pb.Policy(name="p", picker="random", max_pressure=0)).max_pressure == 0


def test_built_in_policies_can_be_read_back() -> None:
    for name, policy in BUILT_IN.items():
        assert policy_of(message_of(policy)) == policy
        assert name == policy.name
    assert {DEFAULT, *BY_LEVEL.values()} <= BUILT_IN.keys()
    wanted = {"balanced", "latency", "throughput", "cost", "round_robin", "session"}
    assert BUILT_IN.keys() == wanted


def document(name: str, **scorers: float) -> Document:
    return Document(store.POLICY, name, pb.Policy(name=name, scorers=scorers).SerializeToString())


def test_a_policy_holds_from_the_next_call_on() -> None:
    mesh = Mesh()
    mesh.report("a", 0, kv_use=0.9)
    mesh.report("b", 2, kv_use=0.1)
    route = pb.ModelRoute(model="m", policy="mine").SerializeToString()
    documents = [Document(store.ROUTE, "m", route)]
    mesh.book.load([document("mine", queue=1), *documents])
    assert mesh.order()[0] == "a"
    mesh.book.load([document("mine", kv_use=1), *documents])
    assert mesh.order()[0] == "b"
    # Gone while the route stays, as when another replica deletes it meanwhile: the default.
    mesh.book.load(documents)
    assert mesh.route().plan.policy.name == "balanced"


def test_a_document_that_cannot_be_read_leaves_the_others() -> None:
    mesh = Mesh()
    mesh.report("a")
    mesh.book.load(
        [
            document("bad", magic=1),
            Document(store.POLICY, "worse", b"\xff"),
            document("ok", queue=1),
        ]
    )
    assert mesh.book.plan("ok")
    assert mesh.book.plan("bad") is mesh.book.plan("worse") is None


def test_what_did_not_change_keeps_its_plan() -> None:
    mesh = Mesh()
    mesh.book.load([document("mine", queue=1)])
    plan = mesh.book.plan("mine")
    mesh.book.load([document("mine", queue=1), document("other", queue=1)])
    assert mesh.book.plan("mine") is plan
    mesh.book.load([document("mine", queue=2)])
    assert mesh.book.plan("mine") is not plan


def test_what_routing_cannot_read_counts_as_not_there() -> None:
    facts = Facts(model="m")
    facts.take_fields(
        {
            "stream": "yes",
            "user": 7,
            "session_id": "x" * 201,
            "fallback_models": "v2",
            "priority": None,
            "enable_caching": "no",
            "tools": [],
            "preferred_framework": {},
        }
    )
    assert facts == Facts(model="m")
    facts.take_encoded_fallbacks("not base64 §")
    facts.take_encoded_fallbacks("e30=")
    facts.take_encoded_prompt("§", 10.0)
    facts.take_encoded_prompt("QUJD", float("nan"))
    assert facts == Facts(model="m")


async def test_what_is_read_first_is_not_taken_over_last() -> None:
    class SlowOnce(MemoryDocumentStore):
        """Its first reading takes until it is let go, as one over a slow connection."""

        def __init__(self) -> None:
            super().__init__()
            self.go = asyncio.Event()
            self.is_first = True

        async def all(self) -> Sequence[Document]:
            found = await super().all()
            if self.is_first:
                self.is_first = False
                await self.go.wait()
            return found

    book, documents = Book(), SlowOnce()
    early = asyncio.create_task(book.reload(documents))
    await asyncio.sleep(0)
    policy = pb.Policy(name="new", scorers={"queue": 1})
    await documents.put(Document(store.POLICY, "new", policy.SerializeToString()))
    late = asyncio.create_task(book.reload(documents))
    await asyncio.sleep(0)
    documents.go.set()
    await asyncio.gather(early, late)
    assert "new" in book.policies
