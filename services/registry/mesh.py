"""The nodes of the mesh: who is in it, in which state, for how long."""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime

from infermesh.registry.v1 import node_service_pb2, resources_pb2
from services.registry import join_rules, refusals
from services.registry.attachment import Attachment, End
from services.registry.catalogue import Catalogue
from services.registry.journal import Journal
from services.registry.node import OFFLINE, LiveNode, joined, restored
from services.registry.report_rules import check_load
from services.registry.store import ModelRow, NodeRow
from services.registry.watchers import Watchers

log = logging.getLogger(__name__)

MAX_NODES = 4096
"""How many nodes the mesh remembers; at the bound a new one takes an offline one's place."""

_LATE_S = 1.0


def utc_now() -> datetime:
    """Returns the time of day."""
    return datetime.now(UTC)


class Mesh:
    """Applies what nodes and operators say, and tells watchers and the journal.

    Args:
        journal: Where changes are written.
        watchers: Who is told.
        lease_s: Seconds after its latest report from which a node is offline.
        clock: A monotonic clock in seconds.
        now: Tells the time of day.
    """

    def __init__(
        self,
        journal: Journal,
        watchers: Watchers,
        *,
        lease_s: float,
        clock: Callable[[], float],
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.catalogue = Catalogue(now)
        self.watchers = watchers
        self._journal = journal
        self._lease_s = lease_s
        self._clock = clock
        self._now = now
        self._nodes: dict[str, LiveNode] = {}
        self._next_expiry = clock() + lease_s

    def restore(self, nodes: Iterable[NodeRow], models: Iterable[ModelRow]) -> None:
        """Takes in what was kept; nodes that were online get a fresh lease."""
        self.catalogue.restore(models)
        self._next_expiry = self._clock() + self._lease_s
        for row in nodes:
            node = restored(row)
            node.lease_end = self._next_expiry
            self._nodes[row.node_id] = node
            self.catalogue.replace_node(None, node)
            for name in node.model_names:
                self.catalogue.refresh(name)

    def nodes(self) -> list[resources_pb2.Node]:
        """Returns the nodes by id."""
        return [self._nodes[node_id].resource for node_id in sorted(self._nodes)]

    def node(self, node_id: str) -> resources_pb2.Node:
        """Returns one node.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        return self._get(node_id).resource

    async def join(self, join: node_service_pb2.JoinNode, key_id: str = "") -> Attachment:
        """Takes a node into the mesh, over any earlier stream of the same id and key.

        A node or model that is new is written before the node is told that it joined. A known
        node joins without the store.

        Args:
            join: What the node says of itself.
            key_id: The key that it joins with; empty when it came past Envoy.

        Raises:
            MeshError: `INVALID_ARGUMENT` when the address is not an IP address and port or
                belongs to another live node; `FAILED_PRECONDITION` when the mesh is full of
                nodes that are not offline, or a live node of this id has another key;
                `STORE_UNAVAILABLE`.
        """
        self.check_join(join, key_id)
        new_models = self.catalogue.new_rows(join.models)
        before = self._nodes.get(join.node_id)
        if before is None or new_models:
            draft = joined(join, before, self._now())
            await self._journal.save([draft.row()], new_models)
            # Others may have joined meanwhile, and then this row is to go again.
            self._journal.note_node(join.node_id)
            self.check_join(join, key_id)
            before = self._nodes.get(join.node_id)
        if before is None and len(self._nodes) >= MAX_NODES:
            self._forget(join_rules.least_missed(self._nodes), "a new node needs its place")

        node = joined(join, before, self._now())
        node.attachment = Attachment(join.node_id, key_id)
        node.lease_end = self._clock() + self._lease_s
        if before and before.attachment:
            before.attachment.close(End.REPLACED)
        for holder in join_rules.holders(self._nodes, join):
            self._take_over(holder)
        self.catalogue.restore(row for row in new_models if not self.catalogue.find(row.name))
        self._nodes[join.node_id] = node
        self.catalogue.replace_node(before, node)
        self._node_changed(node, {*node.model_names, *(before.model_names if before else ())})
        if node.drain_wished:
            node.attachment.tell_drain(True)
        log.info("node joined", extra={"node_id": join.node_id, "address": join.address})
        return node.attachment

    def report(self, attachment: Attachment, report: node_service_pb2.NodeReport) -> None:
        """Applies a report and renews the lease; does nothing on a stream that was replaced.

        Raises:
            MeshError: `INVALID_ARGUMENT`: its numbers cannot be true. Nothing has changed.
        """
        node = self._attached(attachment)
        if node is None:
            return
        check_load(report.load, node.resource.load if node.has_load else None)
        node.has_load = True
        node.lease_end = self._clock() + self._lease_s
        node.engine_up = report.engine_up
        node.self_draining = report.draining
        node.resource.load.CopyFrom(report.load)
        node.resource.report_time.FromDatetime(self._now())
        self._set_state(node, node.online_state())
        self.watchers.node_changed(attachment.node_id)

    def update(self, attachment: Attachment, update: node_service_pb2.NodeUpdate) -> None:
        """Takes in what a node serves now; does nothing on a stream that was replaced.

        New models are written as soon as the store answers.

        Raises:
            MeshError: `FAILED_PRECONDITION` when the catalogue is full. Nothing has changed.
        """
        node = self._attached(attachment)
        if node is None:
            return
        self.catalogue.new_rows(update.models)
        names = set(node.model_names)
        self.catalogue.remove_node(node)
        node.resource.engine_version = update.engine_version
        del node.resource.models[:]
        node.resource.models.extend(update.models)
        self.catalogue.replace_node(None, node)
        self._node_changed(node, names.union(node.model_names))

    def leave(self, attachment: Attachment) -> None:
        """Takes a node offline that left by itself."""
        self.eject(attachment, "it left")

    def eject(self, attachment: Attachment, reason: str) -> None:
        """Takes a node offline at once; does nothing on a stream that was replaced."""
        node = self._attached(attachment)
        if node:
            self._take_offline(node, reason)

    def attachment(self, node_id: str) -> Attachment:
        """Returns the stream of a node.

        Raises:
            MeshError: `NOT_FOUND`; `FAILED_PRECONDITION` when it has none now.
        """
        node = self._get(node_id)
        if node.attachment is None or not node.online:
            raise refusals.not_attached(node_id)
        return node.attachment

    def detach(self, attachment: Attachment) -> None:
        """Notes that a stream ended. The lease decides what becomes of the node.

        A restart of Envoy breaks the streams of all nodes at once.
        """
        node = self._attached(attachment)
        if node:
            node.attachment = None

    async def set_drain(self, node_id: str, wished: bool) -> resources_pb2.Node:
        """Drains a node or lets it take traffic again, and tells it.

        Raises:
            MeshError: `NOT_FOUND`; `STORE_UNAVAILABLE`, and nothing changes.
        """
        node = self._get(node_id)
        if node.drain_wished == wished:
            return node.resource
        await self._journal.save([dataclasses.replace(node.row(), draining=wished)], [])
        # The node may have joined anew, or been deleted, while this was written: its row is
        # written again, or goes again.
        self._journal.note_node(node_id)
        node = self._get(node_id)
        node.drain_wished = wished
        log.info("drain changed", extra={"node_id": node_id, "draining": wished})
        if node.attachment:
            node.attachment.tell_drain(wished)
        if node.online:
            self._set_state(node, node.online_state())
        return node.resource

    async def delete_node(self, node_id: str) -> None:
        """Forgets a node that is offline.

        Raises:
            MeshError: `NOT_FOUND`, `FAILED_PRECONDITION` or `STORE_UNAVAILABLE`.
        """
        self._get_offline(node_id)
        await self._journal.save([], [], [node_id])
        # The node may have joined anew, or been deleted, while this was written.
        self._journal.note_node(node_id)
        self._forget(self._get_offline(node_id), "an operator deleted it")

    async def delete_model(self, name: str) -> None:
        """Deletes a model that no node serves.

        Raises:
            MeshError: `MODEL_NOT_FOUND`, `FAILED_PRECONDITION` or `STORE_UNAVAILABLE`.
        """
        self._check_deletable(name)
        await self._journal.delete_model(name)
        if self.catalogue.is_served(name):
            # A node joined with it in the meantime: it stays, and is written again.
            self._journal.note_model(name)
            self._check_deletable(name)
        self.catalogue.delete(name)
        self.watchers.model_deleted(name)

    def expire(self) -> float:
        """Takes nodes offline whose lease ran out; returns the seconds to the next look."""
        now = self._clock()
        online = [node for node in self._nodes.values() if node.online]
        if now - self._next_expiry > _LATE_S:
            # This process stood still, so reports lie unread: that is not the nodes' silence.
            for node in online:
                node.lease_end = now + self._lease_s
        for node in online:
            if node.lease_end <= now:
                self._take_offline(node, "its lease ran out")
        self._next_expiry = min(
            (node.lease_end for node in online if node.online), default=now + self._lease_s
        )
        return self._next_expiry - now

    async def run_leases(self) -> None:
        """Takes nodes offline whose lease runs out, forever."""
        while True:
            delay_s = self.expire()
            await asyncio.sleep(delay_s)

    def close(self) -> None:
        """Ends all streams of nodes and all watches, because the registry stops."""
        for node in self._nodes.values():
            if node.attachment:
                node.attachment.close(End.STOPPING)
        self.watchers.close()

    def rows(
        self, node_ids: Collection[str], names: Collection[str]
    ) -> tuple[Sequence[NodeRow], Sequence[ModelRow]]:
        """Returns the rows of these nodes and models as they are now, less those that are gone."""
        models = (self.catalogue.row(name) for name in names)
        return (
            [self._nodes[node_id].row() for node_id in node_ids if node_id in self._nodes],
            [row for row in models if row is not None],
        )

    def _get(self, node_id: str) -> LiveNode:
        node = self._nodes.get(node_id)
        if node is None:
            raise refusals.no_node(node_id)
        return node

    def _get_offline(self, node_id: str) -> LiveNode:
        node = self._get(node_id)
        if node.online:
            raise refusals.not_offline(node_id)
        return node

    def _attached(self, attachment: Attachment) -> LiveNode | None:
        node = self._nodes.get(attachment.node_id)
        return node if node and node.attachment is attachment else None

    def _forget(self, node: LiveNode, reason: str) -> None:
        node_id = node.resource.node_id
        log.info("node deleted", extra={"node_id": node_id, "reason": reason})
        if node.attachment:
            # It was only slow: nothing stops it from joining anew.
            node.attachment.close(refusals.deleted(node_id))
        del self._nodes[node_id]
        self.catalogue.remove_node(node)
        self._journal.note_node(node_id)
        self.watchers.node_deleted(node_id)

    def _take_over(self, holder: LiveNode) -> None:
        if holder.attachment:
            holder.attachment.close(End.REPLACED)
            holder.attachment = None
        if holder.online:
            self._take_offline(holder, "another node took its address")

    def check_join(self, join: node_service_pb2.JoinNode, key_id: str = "") -> None:
        """Checks a join, and gives its address the canonical form. Raises like `join`."""
        join_rules.check(self._nodes, join, key_id, MAX_NODES)

    def _check_deletable(self, name: str) -> None:
        self.catalogue.get(name)
        if self.catalogue.is_served(name):
            raise refusals.served(name)

    def _take_offline(self, node: LiveNode, reason: str) -> None:
        log.info("node offline", extra={"node_id": node.resource.node_id, "reason": reason})
        node.engine_up = node.self_draining = False
        node.resource.ClearField("load")
        self._set_state(node, OFFLINE)

    def _set_state(self, node: LiveNode, state: resources_pb2.NodeState.ValueType) -> None:
        if node.resource.state != state:
            node.resource.state = state
            self._node_changed(node, node.model_names)

    def _node_changed(self, node: LiveNode, names: Iterable[str]) -> None:
        self._journal.note_node(node.resource.node_id)
        self.watchers.node_changed(node.resource.node_id)
        for name in names:
            if self.catalogue.refresh(name):
                self._journal.note_model(name)
                self.watchers.model_changed(name)
