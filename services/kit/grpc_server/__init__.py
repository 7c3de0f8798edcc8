"""gRPC over HTTP/2 on uvloop, for servers whose callers stand behind Envoy.

It takes the place of `grpc.aio.server`, whose two threads and completion queue cost about 200 µs of
CPU per call on the machines that this was measured on, most of them in waking one another; this
one takes about a quarter of that (`make bench-grpc`). It serves the same handlers through the same
interfaces, so that servicers know nothing of it. Header compression is jh2's, written in Rust.

    server.py       the server: handlers, listening, stopping
    limits.py       what peers may take of the process
    connection.py   HTTP/2: what frames mean
    link.py         a connection's life: sending, waiting, closing
    request.py      a call's headers
    call.py         one call: its request, its handler
    inbox.py        the request's bytes and the messages in them
    answer.py       what goes back
    context.py      the rest of what servicers see
    wire.py         what both sides say: frames, header blocks, numbers of RFC 9113

Peers need not be Envoy: what one sends is answered, refused or ends its own connection, and what
it can take of memory and time is bounded by `Limits`.
"""

from services.kit.grpc_server.limits import Limits
from services.kit.grpc_server.server import GrpcServer

__all__ = ["GrpcServer", "Limits"]
