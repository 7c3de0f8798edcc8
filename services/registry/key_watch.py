"""Ends streams whose caller may no longer make the call, within a second.

Auth decides when a call begins, and a node's stream lasts for weeks. So the registry asks auth, a
few times a second and only while there are streams, which of their keys it would refuse by now.
While auth does not answer, streams go on: the nodes are needed, and nobody new gets in.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from itertools import islice
from typing import NamedTuple, Protocol

import grpc

from infermesh.auth.v1 import key_check_service_pb2 as pb
from infermesh.auth.v1 import key_check_service_pb2_grpc

log = logging.getLogger(__name__)

# A revocation reaches auth's replicas within a tenth of a second; this leaves room for the answer.
_INTERVAL_S = 0.4
_TIMEOUT_S = 2.0
_MAX_KEYS = 8192

# Whom auth cannot revoke, the holder of an issuer's token, has to show it again.
_KEY_PREFIX = "key_"
_MAX_AGE_S = 300.0


class Watched(NamedTuple):
    """A stream that is watched over.

    Attributes:
        rpc: The path that is called.
        key_id: Who calls.
        since_s: When it began, by the watch's clock.
        end: Ends it.
    """

    rpc: str
    key_id: str
    since_s: float
    end: Callable[[], None]


class Refusals(Protocol):
    """Knows which keys may still call what."""

    async def find(self, rpc: str, key_ids: Collection[str]) -> Collection[str]:
        """Returns those of the keys that may no longer call an RPC.

        Raises:
            AioRpcError: Nobody can say now.
        """


class KeyWatch:
    """Watches over the keys of streams.

    Args:
        refusals: Says which keys are refused by now.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, refusals: Refusals, clock: Callable[[], float] = time.monotonic) -> None:
        self._refusals = refusals
        self._clock = clock
        self._streams: dict[int, Watched] = {}
        self._next = 0
        self._wake = asyncio.Event()
        self._is_failing = False

    def add(self, rpc: str, key_id: str, end: Callable[[], None]) -> Callable[[], None]:
        """Watches over a stream from now on; the one that came past Envoy, without a key, is free.

        Args:
            rpc: The path that is called.
            key_id: Who calls.
            end: Called once, when the key may no longer call that. A stream that an issuer's token
                began ends after 5 minutes.

        Returns:
            What to call when the stream is over.
        """
        if not key_id:
            return lambda: None
        number = self._next = self._next + 1
        self._streams[number] = Watched(rpc, key_id, self._clock(), end)
        self._wake.set()

        def over() -> None:
            self._streams.pop(number, None)

        return over

    async def run(self) -> None:
        """Watches, forever."""
        while True:
            await self._wake.wait()
            await self.look()
            if not self._streams:
                self._wake.clear()
            await asyncio.sleep(_INTERVAL_S)

    async def look(self) -> None:
        """Asks once, and ends the streams of keys that are refused."""
        keys: dict[str, set[str]] = {}
        for stream in self._streams.values():
            keys.setdefault(stream.rpc, set()).add(stream.key_id)
        try:
            refused = {
                (rpc, key_id)
                for rpc, key_ids in keys.items()
                for key_id in await self._find(rpc, key_ids)
            }
        except grpc.aio.AioRpcError as error:
            if not self._is_failing:
                log.warning(
                    "auth does not say which keys are revoked", extra={"error": repr(error)}
                )
            self._is_failing = True
            return
        self._is_failing = False
        now = self._clock()
        for number, stream in list(self._streams.items()):
            is_old = now - stream.since_s > _MAX_AGE_S
            if (stream.rpc, stream.key_id) in refused or (
                is_old and not stream.key_id.startswith(_KEY_PREFIX)
            ):
                del self._streams[number]
                who = {"rpc": stream.rpc, "key_id": stream.key_id}
                log.warning("a stream ends with its key", extra={"audit": True, **who})
                stream.end()

    async def _find(self, rpc: str, key_ids: set[str]) -> set[str]:
        left, refused = iter(key_ids), set[str]()
        while part := list(islice(left, _MAX_KEYS)):
            refused.update(await self._refusals.find(rpc, part))
        return refused


class AskAuth:
    """Asks auth.

    Args:
        channel: To auth.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = key_check_service_pb2_grpc.KeyCheckServiceStub(channel)

    async def find(self, rpc: str, key_ids: Collection[str]) -> Collection[str]:
        """See `Refusals`."""
        request = pb.FindRefusedKeysRequest(rpc=rpc, key_ids=key_ids)
        return (await self._stub.FindRefusedKeys(request, timeout=_TIMEOUT_S)).key_ids


class NobodyToAsk:
    """Stands where there is no auth: every key is good."""

    async def find(self, rpc: str, key_ids: Collection[str]) -> Collection[str]:
        """Returns nothing."""
        return ()
