"""What tests of several kinds share."""

import socket
import tempfile

_STATE = tempfile.TemporaryDirectory(prefix="infermesh-tests-", ignore_cleanup_errors=True)


def state_dir() -> str:
    """Returns a new empty folder, gone with the test run."""
    return tempfile.mkdtemp(dir=_STATE.name)


def free_port() -> int:
    """Returns a TCP port on loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
