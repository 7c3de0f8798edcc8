"""One call of a gateway that is not ours, in the full form of the endpoint picker protocol.

    request body mode        when the choice is made                how it is told
    NONE, STREAMED           with the headers                       in the answer to the headers
    BUFFERED(_PARTIAL)       with the body                          in the answer to the body
    FULL_DUPLEX_STREAMED     with the end of the body               in the answer to the headers,
                                                                    which waits until then

A call whose headers or metadata name a model is decided at once in every mode. Where a body is
streamed in full duplex, it is sent back as it came; nothing else is ever changed in a body.
"""

from collections.abc import Callable, Iterator

from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from infermesh.errors.v1 import errors_pb2
from services.kit.errors import MeshError
from services.routing import gateway, replies
from services.routing.facts import Facts
from services.routing.router import Outcome

MAX_BODY_BYTES = 16 * 1024 * 1024

# Envoy takes up to 64 KiB of body in one answer.
_CHUNK_BYTES = 60 * 1024

_MODE = processing_mode_pb2.ProcessingMode
_BUFFERED = (_MODE.BUFFERED, _MODE.BUFFERED_PARTIAL)

Decide = Callable[[Facts], Outcome | MeshError | None]


class Picking:
    """Answers the messages of one call.

    Attributes:
        is_over: Whether nothing more is to be said.

    Args:
        decide: Says where a call goes.
        served: Told of the choice and of the address that a gateway reports to have answered.
    """

    def __init__(self, decide: Decide, served: Callable[[Outcome, str], None]) -> None:
        self.is_over = False
        self._decide = decide
        self._served = served
        self._facts = Facts()
        self._outcome: Outcome | None = None
        self._body = bytearray()
        self._is_duplex = False
        self._is_response_duplex = False
        self._is_waiting = False
        self._wants_body = False

    def on_message(self, request: pb.ProcessingRequest) -> Iterator[bytes]:
        """Yields the answers to one message; there may be none, or several."""
        kind = request.WhichOneof("request")
        if kind == "request_headers":
            yield from self._on_headers(request)
        elif kind == "request_body":
            yield from self._on_body(request.request_body)
        elif kind == "request_trailers":
            if self._is_waiting:
                yield from self._choose_late(ends=False)
            if not self.is_over:
                yield _bytes(pb.ProcessingResponse(request_trailers=pb.TrailersResponse()))
        elif kind == "response_headers":
            address = gateway.served(request)
            if address and self._outcome is not None:
                self._served(self._outcome, address)
            yield _bytes(pb.ProcessingResponse(response_headers=pb.HeadersResponse()))
        elif kind == "response_body":
            reply = _body(request.response_body, duplex=self._is_response_duplex)
            yield _bytes(pb.ProcessingResponse(response_body=reply))
        elif kind == "response_trailers":
            yield _bytes(pb.ProcessingResponse(response_trailers=pb.TrailersResponse()))

    def _on_headers(self, request: pb.ProcessingRequest) -> Iterator[bytes]:
        self._facts = gateway.facts_of(request)
        mode = request.protocol_config.request_body_mode
        duplex = _MODE.FULL_DUPLEX_STREAMED
        self._is_duplex = mode == duplex
        self._is_response_duplex = request.protocol_config.response_body_mode == duplex
        ended = request.request_headers.end_of_stream
        if self._facts.model or ended:
            yield self._choose(replies.CONTINUE)
        elif self._is_duplex:
            self._is_waiting = True
        else:
            self._wants_body = mode in _BUFFERED
            yield replies.CONTINUE

    def _on_body(self, body: pb.HttpBody) -> Iterator[bytes]:
        if self._is_waiting:
            if len(self._body) + len(body.body) > MAX_BODY_BYTES:
                yield self._refuse(_too_large())
                return
            self._body += body.body
            if body.end_of_stream or body.end_of_stream_without_message:
                yield from self._choose_late(ends=True)
            return
        if self._wants_body:
            self._wants_body = False
            self._facts.take_body(body.body)
            yield replies.as_body(self._choose(_NO_CHANGE))
            return
        reply = _body(body, duplex=self._is_duplex)
        yield _bytes(pb.ProcessingResponse(request_body=reply))

    def _choose_late(self, *, ends: bool) -> Iterator[bytes]:
        """Answers the headers, now that the whole body is here, and sends the body on.

        Args:
            ends: Whether the body ends the request; else its trailers do.
        """
        self._is_waiting = False
        body = bytes(self._body)
        self._body.clear()
        self._facts.take_body(body)
        yield self._choose(replies.CONTINUE)
        if self.is_over:
            return
        for start in range(0, max(len(body), 1), _CHUNK_BYTES):
            chunk = pb.StreamedBodyResponse(
                body=body[start : start + _CHUNK_BYTES],
                end_of_stream=ends and start + _CHUNK_BYTES >= len(body),
            )
            mutation = pb.BodyMutation(streamed_response=chunk)
            reply = pb.BodyResponse(response=pb.CommonResponse(body_mutation=mutation))
            yield _bytes(pb.ProcessingResponse(request_body=reply))

    def _choose(self, otherwise: bytes) -> bytes:
        found = self._decide(self._facts)
        if found is None:
            return otherwise
        if isinstance(found, MeshError):
            return self._refuse(found)
        self._outcome = found
        return replies.destination(found, self._facts)

    def _refuse(self, error: MeshError) -> bytes:
        self.is_over = True
        return replies.refusal(error, rest=self._facts.is_rest)


_NO_CHANGE = b""


def _body(body: pb.HttpBody, *, duplex: bool) -> pb.BodyResponse:
    if not duplex:
        return pb.BodyResponse()
    chunk = pb.StreamedBodyResponse(body=body.body, end_of_stream=body.end_of_stream)
    mutation = pb.BodyMutation(streamed_response=chunk)
    return pb.BodyResponse(response=pb.CommonResponse(body_mutation=mutation))


def _too_large() -> MeshError:
    return MeshError(
        errors_pb2.ERROR_REASON_REQUEST_TOO_LARGE, "The request body is larger than 16 MiB."
    )


def _bytes(reply: pb.ProcessingResponse) -> bytes:
    return bytes(reply.SerializeToString())
