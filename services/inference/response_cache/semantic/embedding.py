"""Has questions embedded by the mesh; where that fails, there is no vector and no error."""

import logging
import time
from collections.abc import Callable, Sequence

import grpc

from infermesh.embeddings.v1 import embeddings_service_pb2 as pb
from infermesh.embeddings.v1 import embeddings_service_pb2_grpc
from infermesh.errors.v1 import errors_pb2
from services.kit.errors import from_rpc_error

log = logging.getLogger(__name__)

# After a failure calls go on without, so that they do not all wait for the next one.
_PAUSE_S = 10.0


class QuestionEmbedder:
    """Asks the embeddings service through the front door, with the node's own key.

    Args:
        channel: To the front door.
        credentials: The node's, as metadata.
        model: The model that makes the vectors.
        timeout_s: How long a call waits for its vector.
        clock: Monotonic, in seconds.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        credentials: tuple[tuple[str, str], ...],
        model: str,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stub = embeddings_service_pb2_grpc.EmbeddingsServiceStub(channel)
        self._credentials = credentials
        self._model = model
        self._timeout_s = timeout_s
        self._clock = clock
        self._is_down = False
        self._next_try = 0.0

    async def embed(self, text: str) -> Sequence[float] | None:
        """Returns the components of a text's vector, or None.

        After a failure there is one try in ten seconds.
        """
        if self._is_down:
            now = self._clock()
            if now < self._next_try:
                return None
            # The others do not wait with this one.
            self._next_try = now + _PAUSE_S
        request = pb.EmbedRequest(model=self._model, inputs=[text])
        try:
            response = await self._stub.Embed(
                request, metadata=self._credentials, timeout=self._timeout_s
            )
        except grpc.aio.AioRpcError as error:
            said = from_rpc_error(error)
            if said is None or said.reason != errors_pb2.ERROR_REASON_INPUT_TOO_LONG:
                reason = error.code().name if said is None else said.reason_name
                self._failed(reason, error.details() or "")
            return None
        self._succeeded()
        return response.embeddings[0].values if response.embeddings else None

    def _failed(self, reason: str, details: str) -> None:
        if not self._is_down:
            log.warning(
                "questions are not embedded",
                extra={"model": self._model, "reason": reason, "details": details},
            )
        self._is_down = True
        self._next_try = self._clock() + _PAUSE_S

    def _succeeded(self) -> None:
        if self._is_down:
            log.info("questions are embedded again", extra={"model": self._model})
        self._is_down = False
