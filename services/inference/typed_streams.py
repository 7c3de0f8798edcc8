"""Typed streams: the objects of an engine's events become messages as they come."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

from infermesh.inference.v1 import inference_service_pb2 as pb
from services.inference import errors
from services.inference.engines.dialect import Tokens
from services.inference.requests import OpenAIRequest
from services.inference.typed import answers
from services.inference.typed.usage import usage_of

Write = Callable[[Any], Awaitable[None]]
"""Sends one message to the caller."""


class _Stream(ABC):
    """What chats and completions have in common.

    Args:
        request: What was asked; its model is the one that answers.
        write: Sends to the caller.
    """

    def __init__(self, request: OpenAIRequest, write: Write) -> None:
        self._request = request
        self._write = write
        self._top: dict[str, Any] = {}
        self._usage: dict[str, Any] | None = None

    async def take(self, objects: list[dict[str, Any]]) -> None:
        """Takes in the objects of events, and passes on what they say.

        Raises:
            MeshError: They are not what OpenAI says they are.
        """
        pieces: list[Any] = []
        try:
            for data in objects:
                if not self._top and data.get("id"):
                    self._top = self._top_of(data)
                if isinstance(usage := data.get("usage"), dict):
                    self._usage = usage
                pieces += self._pieces(data)
        except answers.UNREADABLE:
            raise errors.failed("The engine's answer cannot be read.") from None
        if pieces:
            await self._write(self._message(pieces))

    async def finish(self, tokens: Tokens | None, metadata: dict[str, Any] | None) -> None:
        """Sends the last message.

        Args:
            tokens: What the answer took; None where the engine did not say.
            metadata: How it came about; None where the caller does not want to see it.
        """
        last = self._message([])
        if tokens is not None:
            last.usage.CopyFrom(usage_of(tokens, self._usage))
        if metadata is not None:
            last.gateway_metadata.CopyFrom(pb.GatewayMetadata(**metadata))
        await self._write(last)

    def _top_of(self, data: dict[str, Any]) -> dict[str, Any]:
        """Returns what all messages say, from the first event that has it."""
        return {
            "id": data["id"],
            "create_time": answers.created_of(data),
            "system_fingerprint": data.get("system_fingerprint") or "",
        }

    @abstractmethod
    def _pieces(self, data: dict[str, Any]) -> list[Any]:
        """Returns what one event says."""

    @abstractmethod
    def _message(self, pieces: list[Any]) -> Any:
        """Returns a message with these pieces."""


class ChatStream(_Stream):
    """The stream of a chat's answer."""

    def _top_of(self, data: dict[str, Any]) -> dict[str, Any]:
        return super()._top_of(data) | {"service_tier": data.get("service_tier") or ""}

    def _pieces(self, data: dict[str, Any]) -> list[Any]:
        return answers.deltas_from_json(data)

    def _message(self, pieces: list[Any]) -> Any:
        return pb.StreamChatResponse(model=self._request.model, deltas=pieces, **self._top)


class CompletionStream(_Stream):
    """The stream of completions."""

    def _pieces(self, data: dict[str, Any]) -> list[Any]:
        return answers.pieces_from_json(data)

    def _message(self, pieces: list[Any]) -> Any:
        return pb.StreamCompleteResponse(model=self._request.model, pieces=pieces, **self._top)
