"""The nodes as Envoy's endpoints, and what a subscriber to them is still owed."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from envoy.config.core.v3 import address_pb2, base_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from infermesh.registry.v1 import resources_pb2
from services.routing.node import NodeView
from services.routing.view import MeshView

log = logging.getLogger(__name__)

CLUSTER = "inference"
"""The cluster in Envoy whose endpoints the nodes are."""

TYPE_URL = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"

_HEALTH = {
    # Envoy's own health checks decide about a ready node.
    resources_pb2.NODE_STATE_READY: health_check_pb2.UNKNOWN,
    resources_pb2.NODE_STATE_ENGINE_DOWN: health_check_pb2.UNHEALTHY,
    resources_pb2.NODE_STATE_DRAINING: health_check_pb2.DRAINING,
}


@dataclass(frozen=True)
class Assignment:
    """One version of the endpoints, encoded."""

    version: str
    resource: any_pb2.Any


class Assignments:
    """Keeps the endpoints of the view, with a new version whenever they differ.

    Versions are nanoseconds since 1970, so they also grow over restarts.

    Args:
        view: The mesh; nothing is assigned before its first sync, since an empty list would take
            all endpoints from an Envoy that still has them.
        now_ns: Tells the time of day in nanoseconds.
    """

    def __init__(self, view: MeshView, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.current: Assignment | None = None
        self._view = view
        self._now_ns = now_ns
        self._latest = 0
        self._listeners: set[Callable[[], None]] = set()
        view.on_change(self._refresh)

    def add_listener(self, listener: Callable[[], None]) -> None:
        """Has `listener` called after each new version."""
        self._listeners.add(listener)

    def remove_listener(self, listener: Callable[[], None]) -> None:
        """Undoes `add_listener`."""
        self._listeners.discard(listener)

    def _refresh(self) -> None:
        encoded = _encode(self._view)
        if self.current is not None and encoded == self.current.resource.value:
            return
        self._latest = max(self._now_ns(), self._latest + 1)
        self.current = Assignment(str(self._latest), any_pb2.Any(type_url=TYPE_URL, value=encoded))
        for listener in self._listeners:
            listener()


def _encode(view: MeshView) -> bytes:
    endpoints = [_endpoint(node) for node in view.nodes() if node.state in _HEALTH]
    assignment = endpoint_pb2.ClusterLoadAssignment(
        cluster_name=CLUSTER,
        endpoints=[endpoint_components_pb2.LocalityLbEndpoints(lb_endpoints=endpoints)],
    )
    return bytes(assignment.SerializeToString(deterministic=True))


def _endpoint(node: NodeView) -> endpoint_components_pb2.LbEndpoint:
    host, _, port = node.address.rpartition(":")
    metadata = base_pb2.Metadata()
    metadata.filter_metadata["envoy.lb"].update(
        {"model": list(node.models), "node_id": node.node_id}
    )
    return endpoint_components_pb2.LbEndpoint(
        endpoint=endpoint_components_pb2.Endpoint(
            address=address_pb2.Address(
                socket_address=address_pb2.SocketAddress(
                    address=host.strip("[]"), port_value=int(port)
                )
            ),
        ),
        health_status=_HEALTH[node.state],
        metadata=metadata,
    )


class Subscription:
    """One Envoy's subscription, state of the world, as the xDS protocol describes it.

    Envoy answers each response with its nonce: with the new version where it took it, with the old
    one and an error where it refused. A refused version is not sent again; the next one is.
    """

    def __init__(self) -> None:
        self._wanted = False
        self._sent_version = ""
        self._nonce = 0

    def on_request(self, request: discovery_pb2.DiscoveryRequest) -> None:
        """Takes in a request: a first one, an ACK, a NACK, or a change of what is wanted."""
        if request.type_url != TYPE_URL:
            return
        if request.response_nonce and request.response_nonce != str(self._nonce):
            return
        if request.HasField("error_detail"):
            log.error("Envoy refused endpoints", extra={"error": request.error_detail.message})
        wanted = not request.resource_names or CLUSTER in request.resource_names
        if wanted and not self._wanted:
            # New to it, whatever it had from another stream.
            self._sent_version = ""
        self._wanted = wanted

    def next_response(
        self, assignment: Assignment | None
    ) -> discovery_pb2.DiscoveryResponse | None:
        """Returns what is to be sent now, and counts it as sent; None when nothing is."""
        if not self._wanted or assignment is None or assignment.version == self._sent_version:
            return None
        self._sent_version = assignment.version
        self._nonce += 1
        return discovery_pb2.DiscoveryResponse(
            version_info=assignment.version,
            resources=[assignment.resource],
            type_url=TYPE_URL,
            nonce=str(self._nonce),
        )
