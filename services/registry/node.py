"""One node: what it said, what an operator wishes, and the state that follows from both."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from google.protobuf import timestamp_pb2

from infermesh.registry.v1 import node_service_pb2, resources_pb2
from services.registry.attachment import Attachment
from services.registry.store import NodeRow, ServedModelRow

READY = resources_pb2.NODE_STATE_READY
ENGINE_DOWN = resources_pb2.NODE_STATE_ENGINE_DOWN
DRAINING = resources_pb2.NODE_STATE_DRAINING
OFFLINE = resources_pb2.NODE_STATE_OFFLINE


def timestamp(moment: datetime) -> timestamp_pb2.Timestamp:
    """Returns a moment as protobuf writes it."""
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(moment)
    return stamp


@dataclass
class LiveNode:
    """A node in memory.

    Attributes:
        resource: The node as callers see it; `state` is set by the mesh alone.
        drain_wished: Whether an operator drains the node; outlives the node's process.
        engine_up: What the latest report said; False before the first.
        self_draining: Whether the latest report said that the node is stopping.
        lease_end: When the node counts as offline, on the monotonic clock.
        attachment: The node's stream while it is open.
        has_load: Whether `resource.load` was reported on this stream.
    """

    resource: resources_pb2.Node = field(default_factory=resources_pb2.Node)
    drain_wished: bool = False
    engine_up: bool = False
    self_draining: bool = False
    lease_end: float = 0.0
    attachment: Attachment | None = None
    has_load: bool = False

    @property
    def online(self) -> bool:
        """Whether its lease is current."""
        return self.resource.state != OFFLINE

    @property
    def model_names(self) -> list[str]:
        """The names of the models that it serves."""
        return [model.name for model in self.resource.models]

    def online_state(self) -> resources_pb2.NodeState.ValueType:
        """Returns the state that the node has while its lease is current."""
        if self.drain_wished or self.self_draining:
            return DRAINING
        return READY if self.engine_up else ENGINE_DOWN

    def last_seen(self) -> datetime:
        """Returns when the node last reported, or joined where it never did."""
        node = self.resource
        stamp = node.report_time if node.HasField("report_time") else node.join_time
        return stamp.ToDatetime(UTC)

    def row(self) -> NodeRow:
        """Returns the node as it is kept."""
        node = self.resource
        return NodeRow(
            node_id=node.node_id,
            address=node.address,
            engine=node.engine,
            engine_version=node.engine_version,
            models=tuple(map(_model_row, node.models)),
            draining=self.drain_wished,
            state=node.state,
            join_time=node.join_time.ToDatetime(UTC),
            last_report_time=(
                node.report_time.ToDatetime(UTC) if node.HasField("report_time") else None
            ),
            labels=dict(node.labels),
            tier=node.tier,
        )


def joined(
    join: node_service_pb2.JoinNode, before: LiveNode | None, join_time: datetime
) -> LiveNode:
    """Returns the node that a join makes.

    A node that was online keeps its state until it reports: when Envoy restarts, all nodes join
    again, and none of them should lose traffic over it.
    """
    node = LiveNode(
        resources_pb2.Node(
            node_id=join.node_id,
            address=join.address,
            engine=join.engine,
            engine_version=join.engine_version,
            models=join.models,
            join_time=timestamp(join_time),
            labels=join.labels,
            tier=join.tier,
        )
    )
    if before is not None:
        node.drain_wished = before.drain_wished
        if before.online:
            node.engine_up = before.engine_up
            node.self_draining = before.self_draining
            if before.resource.HasField("load"):
                node.resource.load.CopyFrom(before.resource.load)
            if before.resource.HasField("report_time"):
                node.resource.report_time.CopyFrom(before.resource.report_time)
    node.resource.state = node.online_state()
    return node


def restored(row: NodeRow) -> LiveNode:
    """Returns the node that was kept, in the state in which it was kept."""
    return LiveNode(
        resources_pb2.Node(
            node_id=row.node_id,
            address=row.address,
            engine=row.engine,
            engine_version=row.engine_version,
            models=[
                resources_pb2.ServedModel(
                    name=model.name,
                    capabilities=[_capability(number) for number in model.capabilities],
                    context_length=model.context_length,
                    base_model=model.base_model,
                    input_price=model.input_price,
                    output_price=model.output_price,
                )
                for model in row.models
            ],
            state=resources_pb2.NodeState.ValueType(row.state),
            report_time=timestamp(row.last_report_time) if row.last_report_time else None,
            join_time=timestamp(row.join_time),
            labels=row.labels,
            tier=row.tier,
        ),
        drain_wished=row.draining,
        engine_up=row.state == READY,
        self_draining=row.state == DRAINING and not row.draining,
    )


def _model_row(model: resources_pb2.ServedModel) -> ServedModelRow:
    return ServedModelRow(
        model.name,
        tuple(model.capabilities),
        model.context_length,
        model.base_model,
        model.input_price if model.HasField("input_price") else None,
        model.output_price if model.HasField("output_price") else None,
    )


def _capability(number: int) -> resources_pb2.Capability.ValueType:
    return resources_pb2.Capability.ValueType(number)
