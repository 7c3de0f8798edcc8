"""What tests of several kinds share."""

import socket


def free_port() -> int:
    """Returns a TCP port on loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
