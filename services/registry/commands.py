"""Has nodes do what operators ask, and brings back how far they are."""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator

from infermesh.errors.v1 import errors_pb2
from infermesh.registry.v1 import node_service_pb2 as pb
from services.kit.errors import MeshError
from services.registry import refusals
from services.registry.attachment import Attachment

MAX_COMMANDS = 8
"""How many commands run on a node at the same time at most."""

_UNREAD = 64


class Command:
    """One command that runs on a node.

    A caller that reads slowly gets fewer messages: of those unread the oldest go.
    """

    def __init__(self, attachment: Attachment, kind: str, what: str) -> None:
        self.attachment = attachment
        self.kind = kind
        self.what = what
        self.status = ""
        self.unread: deque[pb.CommandProgress] = deque(maxlen=_UNREAD)
        self.wake = asyncio.Event()
        self.is_cut_off = False


class Commands:
    """All commands that run now."""

    def __init__(self) -> None:
        self._running: dict[str, Command] = {}

    def running_on(self, node_id: str) -> list[str]:
        """Returns what runs on a node, in words. Example: `load qwen3: pulling manifest`."""
        return [
            f"{command.what}: {command.status}" if command.status else command.what
            for command in self._running.values()
            if command.attachment.node_id == node_id
        ]

    async def run(
        self, attachment: Attachment, command: pb.NodeCommand, kind: str, what: str
    ) -> AsyncIterator[pb.CommandProgress]:
        """Has a node do something; yields how far it is until it is done.

        Whoever stops reading before the end must `abandon` the command.

        Args:
            attachment: The node's stream.
            command: What to do; gets its id here.
            kind: Which field of `CommandProgress` tells of it.
            what: The same for people.

        Raises:
            MeshError: What the node failed with; `FAILED_PRECONDITION` when it runs too much
                already; `SERVICE_UNAVAILABLE` when it leaves in the middle.
        """
        node_id = attachment.node_id
        on_node = [each for each in self._running.values() if each.attachment is attachment]
        if len(on_node) >= MAX_COMMANDS:
            raise refusals.busy(node_id, MAX_COMMANDS)
        command.command_id = secrets.token_hex(8)
        running = self._running[command.command_id] = Command(attachment, kind, what)
        attachment.send(pb.AttachNodeResponse(command=command))
        while True:
            while running.unread:
                progress = running.unread.popleft()
                is_last = _is_last(progress)
                if is_last or progress.HasField("failure"):
                    del self._running[command.command_id]
                if progress.HasField("failure"):
                    raise _failure_of(progress)
                yield progress
                if is_last:
                    return
            if running.is_cut_off:
                raise refusals.left_meanwhile(node_id)
            running.wake.clear()
            await running.wake.wait()

    def abandon(self, command_id: str) -> None:
        """Has a command stopped that nobody waits for any more; passes over one that is over."""
        command = self._running.pop(command_id, None)
        if command is not None and not command.is_cut_off:
            cancel = pb.CancelCommand(command_id=command_id)
            command.attachment.send(pb.AttachNodeResponse(cancel_command=cancel))

    def progress(self, attachment: Attachment, progress: pb.CommandProgress) -> None:
        """Takes in what a node says of a command; passes over one that nobody waits for.

        Raises:
            MeshError: `INVALID_ARGUMENT`: it is about something else than the command.
        """
        command = self._running.get(progress.command_id)
        if command is None or command.attachment is not attachment:
            return
        said = progress.WhichOneof("progress")
        if said not in (command.kind, "failure"):
            raise MeshError(
                errors_pb2.ERROR_REASON_INVALID_ARGUMENT,
                f"progress.{said}: is not what the command is about",
                param=f"progress.{said}",
            )
        if said == "model":
            command.status = progress.model.status
        elif said == "benchmark":
            command.status = f"{progress.benchmark.completed} answered"
        command.unread.append(progress)
        command.wake.set()

    def cut_off(self, attachment: Attachment) -> None:
        """Ends the commands of a stream that has ended."""
        for command in self._running.values():
            if command.attachment is attachment:
                command.is_cut_off = True
                command.wake.set()


def _failure_of(progress: pb.CommandProgress) -> MeshError:
    """Returns the error that a node's failure stands for."""
    failure = progress.failure
    return MeshError(failure.reason, failure.message, param=failure.param or None)


def _is_last(progress: pb.CommandProgress) -> bool:
    return progress.model.done or progress.benchmark.HasField("result")
