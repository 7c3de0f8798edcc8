"""What Envoy is told of the nodes, and when."""

from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2
from google.rpc import status_pb2

from infermesh.registry.v1 import node_service_pb2
from infermesh.registry.v1 import resources_pb2 as r
from services.routing.eds import TYPE_URL, Assignment, Assignments, Subscription
from services.routing.view import MeshView


class Mesh:
    def __init__(self) -> None:
        self.view = MeshView(lambda: 0.0)
        self.assignments = Assignments(self.view, now_ns=lambda: 1000)

    def say(self, *nodes: r.Node, synced: bool = False) -> None:
        self.view.apply(node_service_pb2.WatchMeshResponse(synced=synced, nodes=nodes))

    def addresses(self) -> dict[str, int]:
        assert self.assignments.current
        assignment = endpoint_pb2.ClusterLoadAssignment()
        assert self.assignments.current.resource.Unpack(assignment)
        return {
            f"{e.endpoint.address.socket_address.address}"
            f" {e.endpoint.address.socket_address.port_value}": e.health_status
            for e in assignment.endpoints[0].lb_endpoints
        }

    @property
    def version(self) -> int:
        assert self.assignments.current
        return int(self.assignments.current.version)


def node(
    node_id: str,
    address: str = "10.0.0.1:80",
    state: "r.NodeState.ValueType" = r.NODE_STATE_READY,
    model: str = "m",
    running: int = 0,
) -> r.Node:
    return r.Node(
        node_id=node_id,
        address=address,
        state=state,
        models=[r.ServedModel(name=model)],
        load=r.NodeLoad(running=running),
    )


def test_nothing_is_assigned_before_the_first_sync() -> None:
    mesh = Mesh()
    assert mesh.assignments.current is None
    mesh.say(synced=True)
    assert mesh.addresses() == {}


def test_states_become_health() -> None:
    mesh = Mesh()
    mesh.say(
        node("a"),
        node("b", "[::1]:81", r.NODE_STATE_DRAINING),
        node("c", "10.0.0.3:82", r.NODE_STATE_ENGINE_DOWN),
        node("d", "10.0.0.4:83", r.NODE_STATE_OFFLINE),
        synced=True,
    )
    assert mesh.addresses() == {"10.0.0.1 80": 0, "::1 81": 3, "10.0.0.3 82": 2}


def test_versions_grow_with_each_difference_and_only_then() -> None:
    mesh = Mesh()
    mesh.say(node("a"), synced=True)
    versions = [mesh.version]
    for same in (node("a", running=5), node("a", running=6)):
        mesh.say(same)
        assert mesh.version == versions[-1]
    # The registry came back and says what it said before.
    mesh.say(node("a"), synced=True)
    assert mesh.version == versions[-1]
    for change in (
        node("a", state=r.NODE_STATE_DRAINING),
        node("a", model="other"),
        node("a", address="10.0.0.9:1"),
        node("b", "10.0.0.2:1"),
    ):
        mesh.say(change)
        versions.append(mesh.version)
    mesh.say(synced=True)
    versions.append(mesh.version)
    assert versions == sorted(set(versions))


def request(
    nonce: str = "", version: str = "", error: str = "", names: tuple[str, ...] = ("inference",)
) -> discovery_pb2.DiscoveryRequest:
    return discovery_pb2.DiscoveryRequest(
        type_url=TYPE_URL,
        resource_names=names,
        response_nonce=nonce,
        version_info=version,
        error_detail=status_pb2.Status(code=13, message=error) if error else None,
    )


def assignment(version: str) -> Assignment:
    return Assignment(version, any_pb2.Any(type_url=TYPE_URL))


def test_each_version_is_sent_once() -> None:
    subscription = Subscription()
    assert subscription.next_response(assignment("1")) is None
    subscription.on_request(request())
    first = subscription.next_response(assignment("1"))
    assert first
    assert subscription.next_response(assignment("1")) is None
    subscription.on_request(request(first.nonce, "1"))
    assert subscription.next_response(assignment("1")) is None
    second = subscription.next_response(assignment("2"))
    assert second
    assert second.nonce != first.nonce


def test_a_refused_version_is_not_sent_again() -> None:
    subscription = Subscription()
    subscription.on_request(request())
    first = subscription.next_response(assignment("1"))
    assert first
    subscription.on_request(request(first.nonce, error="no"))
    assert subscription.next_response(assignment("1")) is None
    assert subscription.next_response(assignment("2"))


def test_a_new_stream_gets_what_it_says_it_has() -> None:
    subscription = Subscription()
    subscription.on_request(request(version="1"))
    assert subscription.next_response(assignment("1"))


def test_late_answers_and_other_types_change_nothing() -> None:
    subscription = Subscription()
    other = request()
    other.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
    subscription.on_request(other)
    assert subscription.next_response(assignment("1")) is None
    subscription.on_request(request())
    subscription.next_response(assignment("1"))
    subscription.next_response(assignment("2"))
    subscription.on_request(request("1", "1", names=("elsewhere",)))
    assert subscription.next_response(assignment("3"))


def test_wanting_again_sends_again() -> None:
    subscription = Subscription()
    subscription.on_request(request())
    first = subscription.next_response(assignment("1"))
    assert first
    subscription.on_request(request(first.nonce, "1", names=("elsewhere",)))
    assert subscription.next_response(assignment("2")) is None
    subscription.on_request(request(first.nonce, "1"))
    assert subscription.next_response(assignment("2"))
