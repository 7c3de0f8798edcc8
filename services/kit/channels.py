"""The one way to another part of the mesh: plain on loopback, or TLS by a folder's files.

gRPC keeps for a channel's life the certificate that it was made with. A `RenewingChannel` makes
another channel once the files have changed; calls that run stay where they are.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from services.kit import tls
from services.kit.tls import TlsFolder

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 24 * 1024 * 1024
"""Above Envoy's limit on request bodies, so that Envoy is the one that refuses, with a 413."""

Options = Sequence[tuple[str, Any]]

CHANNEL_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A part that restarts is back within a second or two; do not wait longer than that to see it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
)

# Renewed files are the first call's that comes so much later.
_LOOK_S = 1.0


def open_channel(
    address: str, peer: str, tls_dir: Path | None, options: Options = CHANNEL_OPTIONS
) -> grpc.aio.Channel:
    """Returns a channel to another part of the mesh.

    Args:
        address: `host:port`.
        peer: The part's name as in its certificate: `envoy`, `service/auth`, `node/gpu-1`. With TLS
            nobody else is talked to.
        tls_dir: The folder with this part's files; None for no TLS.
        options: gRPC's.

    Raises:
        OSError: The files cannot be read.
    """
    if tls_dir is None:
        return grpc.aio.insecure_channel(address, options=options)
    # gRPC compares DNS names only, and the address is none of the certificate's business: where a
    # part runs may change, what it is does not.
    named = (*options, ("grpc.ssl_target_name_override", tls.dns_of(peer)))
    folder = TlsFolder(tls_dir)

    def make() -> grpc.aio.Channel:
        pem = folder.read()
        credentials = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.certificate)
        return grpc.aio.secure_channel(address, credentials, options=named)

    return RenewingChannel(make, folder.version)


def open_front_channel(
    address: str, ca: Path | None, name: str = "", options: Options = CHANNEL_OPTIONS
) -> grpc.aio.Channel:
    """Returns a channel to a front door, which is whom its certificate says.

    Args:
        address: `host:port`, or `https://host:port` for TLS.
        ca: Whom to trust, a PEM file that may change; None for whom the system trusts. Used with
            TLS only.
        name: The name in its certificate, where it is not the address's.
        options: gRPC's.

    Raises:
        OSError: The file cannot be read.
    """
    target, is_tls = split_address(address)
    if not is_tls:
        return grpc.aio.insecure_channel(target, options=options)
    if name:
        options = (*options, ("grpc.ssl_target_name_override", name))
    if ca is None:
        return grpc.aio.secure_channel(target, front_credentials(None), options=options)

    def make() -> grpc.aio.Channel:
        return grpc.aio.secure_channel(target, front_credentials(ca), options=options)

    return RenewingChannel(make, lambda: tls.version_of([ca]))


def front_credentials(ca: Path | None) -> grpc.ChannelCredentials:
    """Returns the credentials with which callers of a front door verify it.

    Raises:
        OSError: The file cannot be read.
    """
    return grpc.ssl_channel_credentials(ca.read_bytes() if ca else None)


def split_address(address: str) -> tuple[str, bool]:
    """Returns `host:port` of a front door, and whether it speaks TLS.

    Args:
        address: `host:port`, `http://host:port`, or `https://host`, whose port is 443 by default.
    """
    scheme, has_scheme, rest = address.partition("://")
    if not has_scheme:
        return address, False
    rest = rest.rstrip("/")
    is_tls = scheme == "https"
    has_port = ":" in rest.rpartition("]")[2]
    return (rest if has_port else f"{rest}:{443 if is_tls else 80}"), is_tls


class _Generation:
    """A channel of gRPC's, and how many calls are on it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.calls = 0
        self.is_retired = False
        self.methods: dict[tuple[str, str], Any] = {}


class RenewingChannel(grpc.aio.Channel):
    """A channel that is made again when its files change.

    Args:
        make: Makes a channel with what the files hold now; raises `OSError` or `ValueError`.
        version: Says something else once the files have changed; None while one is missing.
        clock: Monotonic, in seconds.
    """

    def __init__(
        self,
        make: Callable[[], grpc.aio.Channel],
        version: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._find_version = version
        self._clock = clock
        self._version = version()
        self._generation = _Generation(make())
        self._next_look = clock() + _LOOK_S
        self._closing: set[asyncio.Task[None]] = set()
        self._retired: set[_Generation] = set()

    def current(self) -> _Generation:
        """Returns what new calls go over."""
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + _LOOK_S
            self._look()
        return self._generation

    def _look(self) -> None:
        version = self._find_version()
        if version is None or version == self._version:
            return
        try:
            generation = _Generation(self._make())
        except (OSError, ValueError) as error:
            # Half of them may be there yet; the old ones are good for a while.
            log.warning("renewed TLS files cannot be read", extra={"error": str(error)})
            return
        self._version = version
        old, self._generation = self._generation, generation
        old.is_retired = True
        self._retired.add(old)
        self._close_if_idle(old)

    def ended(self, generation: _Generation) -> None:
        """Takes note that a call is over."""
        generation.calls -= 1
        self._close_if_idle(generation)

    def _close_if_idle(self, generation: _Generation) -> None:
        if generation.is_retired and not generation.calls and generation in self._retired:
            self._retired.discard(generation)
            task = asyncio.ensure_future(generation.channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    # --- grpc.aio.Channel ---

    async def __aenter__(self) -> "RenewingChannel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Closes it; calls that run are ended after `grace` seconds."""
        channels = [each.channel for each in (*self._retired, self._generation)]
        self._retired.clear()
        await asyncio.gather(*(channel.close(grace) for channel in channels), *self._closing)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Says how the channel is that new calls go over."""
        return self.current().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Waits until that channel's state is another."""
        await self.current().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Waits until that channel is connected."""
        await self.current().channel.channel_ready()

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return _Method(self, "unary_unary", method, args, kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return _Method(self, "unary_stream", method, args, kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return _Method(self, "stream_unary", method, args, kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return _Method(self, "stream_stream", method, args, kwargs)


class _Method:
    """One method, called over whatever channel is the current one."""

    def __init__(
        self,
        channel: RenewingChannel,
        kind: str,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._channel = channel
        self._key = kind, method
        self._args = args
        self._kwargs = kwargs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        generation = self._channel.current()
        act = generation.methods.get(self._key)
        if act is None:
            kind, method = self._key
            act = getattr(generation.channel, kind)(method, *self._args, **self._kwargs)
            generation.methods[self._key] = act
        call = act(*args, **kwargs)
        generation.calls += 1
        call.add_done_callback(lambda _: self._channel.ended(generation))
        return call
