"""gRPC over HTTP/2 on uvloop, for servers whose callers stand behind Envoy.

It takes the place of `grpc.aio.server`, whose two threads and completion queue cost about 200 µs of
CPU per call on the machines that this was measured on, most of them in waking one another; this
one takes about a quarter of that (`make bench-grpc`). It serves the same handlers through the same
interfaces, so that servicers know nothing of it. Header compression is jh2's, written in Rust.

    server.py       the server: handlers, listening, stopping
    connection.py   HTTP/2: frames, flow control
    call.py         one call: messages, status, cancellation; the context that servicers get
    wire.py         what both say on the wire: frames, header blocks, numbers of RFC 9113
"""

from services.kit.grpc_server.server import GrpcServer

__all__ = ["GrpcServer"]
