"""Records what each request took, in every way in which it can end."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from infermesh.metrics.v1 import usage_service_pb2
from services.embeddings.vectors import Vector
from services.kit.caller import Caller
from services.kit.errors import MeshError
from services.kit.usage_spool import Spool

NODE_ID = "embeddings"
_MAX_MODEL_CHARS = 200


class Account:
    """What is known of one request."""

    def __init__(self, event: usage_service_pb2.UsageEvent) -> None:
        self._event = event

    def set_model(self, model: str) -> None:
        """Notes the model that the request names."""
        self._event.model = model[:_MAX_MODEL_CHARS]

    def set_vectors(self, vectors: Sequence[Vector]) -> None:
        """Notes the tokens of the answer."""
        self._event.prompt_tokens = sum(vector.tokens for vector in vectors)
        self._event.completion_tokens = 0
        self._event.cached_tokens = sum(vector.tokens for vector in vectors if vector.cached)


class Accounting:
    """Opens an account for each request.

    Args:
        spool: Where the events go.
        now_ns: Returns nanoseconds since 1970.
    """

    def __init__(self, spool: Spool, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._spool = spool
        self._now_ns = now_ns

    @contextlib.contextmanager
    def account(self, caller: Caller) -> Iterator[Account]:
        """Accounts for what happens within; when it ends, the event survives the process.

        A call from inside the mesh, which has no key, leaves no event.
        """
        start_ns = self._now_ns()
        event = usage_service_pb2.UsageEvent(
            request_id=caller.request_id,
            attempt=caller.attempt,
            tenant=caller.tenant,
            key_id=caller.key_id,
            model=caller.model[:_MAX_MODEL_CHARS],
            node_id=NODE_ID,
            operation=usage_service_pb2.OPERATION_EMBEDDING,
            project=caller.project,
            reserved=caller.reserved,
        )
        event.start_time.FromNanoseconds(start_ns)
        account = Account(event)
        if not caller.key_id:
            yield account
            return
        self._spool.begin(event)
        event.outcome = usage_service_pb2.OUTCOME_FAILED
        try:
            yield account
            event.outcome = usage_service_pb2.OUTCOME_OK
        except MeshError as error:
            if 400 <= error.http_status < 500:
                event.outcome = usage_service_pb2.OUTCOME_REJECTED
            raise
        except asyncio.CancelledError:
            event.outcome = usage_service_pb2.OUTCOME_CANCELLED
            raise
        finally:
            if caller.requested_model != event.model:
                event.requested_model = caller.requested_model[:_MAX_MODEL_CHARS]
            event.duration.FromNanoseconds(max(0, self._now_ns() - start_ns))
            self._spool.finish(event)
