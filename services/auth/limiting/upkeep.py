"""Keeps a connection to Redis, tells it what it missed, and says that this replica lives."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import hiredis

from services.auth.limiting import wire
from services.auth.limiting.journal import Journal
from services.auth.limiting.link import Link, LinkLostError, connect
from services.auth.limiting.shares import Shares
from services.auth.limiting.wire import Plain

log = logging.getLogger(__name__)

_RETRY_S = 0.2
_MAX_PART = 128
_HEARTBEAT_S = 1.0
_REMEMBER_REPLICAS_S = 5


class Upkeep:
    """The connection's life.

    Args:
        url: `redis://…` or `rediss://…`.
        replica: This replica's name, which no other has.
        journal: What Redis is told first.
        shares: Told how many replicas there are.
        request: Returns the script's argument for operations.
        on_up: Called with a connection from which on Redis can be asked.
        on_lost: Called with it when it is gone.

    Attributes:
        run_id: Names the process of Redis that is, or was last, connected.
    """

    def __init__(
        self,
        url: str,
        replica: str,
        journal: Journal,
        shares: Shares,
        request: Callable[[Sequence[wire.Operation]], bytes],
        on_up: Callable[[Link], None],
        on_lost: Callable[[Link], None],
    ) -> None:
        self.run_id = ""
        self._url = url
        self._replica = replica
        self._journal = journal
        self._shares = shares
        self._request = request
        self._on_up = on_up
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._lost = asyncio.Event()

    async def run(self, started: asyncio.Event) -> None:
        """Connects, again and again, until it is cancelled; an open connection stays open then.

        Args:
            started: Set after the first try, whether it worked or not.
        """
        is_away = False
        while True:
            try:
                await self._open()
            except (OSError, TimeoutError, hiredis.ReplyError) as error:
                if not is_away:
                    log.warning("Redis is away; limiting without it", extra={"error": repr(error)})
                is_away = True
                started.set()
                await asyncio.sleep(_RETRY_S)
                continue
            if is_away:
                log.info("Redis is back")
            is_away = False
            started.set()
            await self._lost.wait()

    async def leave(self, link: Link) -> None:
        """Tells Redis that this replica is gone."""
        farewell = Plain([wire.FAREWELL, self._replica], 0)
        with contextlib.suppress(LinkLostError, hiredis.ReplyError):
            await run_script(link, self._request([farewell]))

    async def _open(self) -> None:
        """Connects and tells what was let in without Redis; then Redis is asked again.

        Raises:
            OSError: Redis is away.
            TimeoutError: It does not answer.
            hiredis.ReplyError: It refuses.
        """
        link, self.run_id = await connect(self._url)
        try:
            reply = await run_script(link, self._request([self._heartbeat()]))
            self._take_replicas(reply)
            while part := self._journal.start(_MAX_PART, int(time.time())):
                await run_script(link, self._request(part))
                self._journal.done(len(part))
            if not link.is_open:
                raise LinkLostError("the connection to Redis is lost")
        except BaseException:
            link.close()
            raise
        # No turn of the loop between the end of the journal and this.
        self._lost.clear()

        def on_lost() -> None:
            self._lost.set()
            self._on_lost(link)

        link.on_lost = on_lost
        self._on_up(link)
        self._loop.call_later(_HEARTBEAT_S, self._beat, link)

    def _beat(self, link: Link) -> None:
        if not link.is_open:
            return

        def on_reply(reply: Any) -> None:
            if wire.is_unknown_script(reply):
                link.send(wire.packed_with_script(argument), on_reply)
            elif isinstance(reply, Exception):
                link.close()
            else:
                self._take_replicas(wire.read(reply))
                self._loop.call_later(_HEARTBEAT_S, self._beat, link)

        argument = self._request([self._heartbeat()])
        link.send(wire.packed(argument), on_reply)

    def _heartbeat(self) -> Plain:
        return Plain([wire.HEARTBEAT, self._replica, _REMEMBER_REPLICAS_S], 0)

    def _take_replicas(self, reply: wire.Reply) -> None:
        _, *replicas = reply.results[0]
        self._shares.replicas = len(replicas)
        self._shares.rank = replicas.index(self._replica.encode())


async def run_script(link: Link, argument: bytes) -> wire.Reply:
    """Runs the script once.

    Raises:
        LinkLostError: The connection is gone.
        hiredis.ReplyError: Redis refuses.
    """
    future: asyncio.Future[wire.Reply] = asyncio.get_running_loop().create_future()

    def on_reply(reply: Any) -> None:
        if wire.is_unknown_script(reply):
            link.send(wire.packed_with_script(argument), on_reply)
        elif not future.done():
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(wire.read(reply))

    link.send(wire.packed(argument), on_reply)
    return await future
