"""Replicas tell each other what they sent where, over Redis.

Each publishes on `infermesh:routing` what it did in the last 50 ms, as JSON:

    {"from": replica, "sent": {node_id: calls}, "kept": [[node_id, [block…], [end…], size]…]}

`sent` makes load counts whole between two reports of a node, `kept` the prefix index. Both are
soft: while Redis is away every replica goes by its own, and nothing is made up for afterwards.
"""

import asyncio
import logging
import secrets
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import orjson
import redis.asyncio
from redis.exceptions import RedisError

from services.routing.node import NodeView
from services.routing.prompt import Prompt
from services.routing.scheduler import Scheduler
from services.routing.view import MeshView

log = logging.getLogger(__name__)

CHANNEL = "infermesh:routing"
INTERVAL_S = 0.05
# After so long a silence it is looked whether Redis is still there.
_LISTEN_S = 1.0
_RETRY_S = 1.0

# At 64 prompts a batch a message stays below about 100 KB; under more load the index of the others
# is a sample, which is what it is good for.
_MAX_KEPT = 64
_MAX_MESSAGE_BYTES = 1024 * 1024
_MAX_BLOCKS = 64


class Sharing:
    """Collects what this replica does, and takes in what the others did.

    Args:
        view: The mesh.
        scheduler: Told of the others' calls.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, view: MeshView, scheduler: Scheduler, clock: Callable[[], float]) -> None:
        self.replica = secrets.token_hex(8)
        self._view = view
        self._scheduler = scheduler
        self._clock = clock
        self._sent: Counter[str] = Counter()
        self._kept: deque[tuple[str, Prompt]] = deque(maxlen=_MAX_KEPT)
        self._news = asyncio.Event()

    def on_decision(self, node: NodeView, prompt: Prompt | None) -> None:
        """Takes note of a decision of this replica."""
        if not self._sent:
            self._news.set()
        self._sent[node.node_id] += 1
        if prompt is not None:
            self._kept.append((node.node_id, prompt))

    async def news(self) -> None:
        """Waits until there is something that the others are to be told."""
        await self._news.wait()

    def take_message(self) -> bytes | None:
        """Returns what the others are to be told, and starts anew; None where nothing happened."""
        if not self._sent:
            return None
        kept = [[node, list(p.blocks), list(p.ends), p.size] for node, p in self._kept]
        message = orjson.dumps({"from": self.replica, "sent": self._sent, "kept": kept})
        self._sent.clear()
        self._kept.clear()
        self._news.clear()
        return message

    def on_message(self, data: bytes) -> None:
        """Takes in what another replica did; what cannot be read is left out.

        Who can write to the mesh's Redis is trusted with no more than the balance of load.
        """
        if len(data) > _MAX_MESSAGE_BYTES:
            return
        try:
            message = orjson.loads(data)
            if message["from"] == self.replica:
                return
            now = self._clock()
            for node_id, calls in message["sent"].items():
                node = self._view.node(node_id)
                if node is not None and isinstance(calls, int) and 0 < calls < 1_000_000:
                    self._scheduler.count(node, calls, now)
            for node_id, blocks, ends, size in message["kept"]:
                node = self._view.node(node_id)
                if node is not None and 0 < len(blocks) == len(ends) <= _MAX_BLOCKS:
                    self._view.index.insert(node.number, blocks, ends, int(size))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("a replica's message cannot be read", extra={"error": repr(error)})


async def share(sharing: Sharing, client: "redis.asyncio.Redis") -> None:
    """Publishes and listens, until it is cancelled."""
    in_touch = True

    def is_back() -> None:
        nonlocal in_touch
        if not in_touch:
            log.info("Redis is back")
        in_touch = True

    while True:
        try:
            await _share(sharing, client, is_back)
        except (RedisError, OSError, TimeoutError) as error:
            if in_touch:
                log.warning(
                    "Redis is away; routing by what this replica knows",
                    extra={"error": repr(error)},
                )
            in_touch = False
        # What the others are not told in time would only mislead them later.
        sharing.take_message()
        await asyncio.sleep(_RETRY_S)


async def _share(
    sharing: Sharing, client: "redis.asyncio.Redis", is_back: Callable[[], None]
) -> None:
    async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(CHANNEL)
        telling = asyncio.create_task(_tell(sharing, client, is_back))
        try:
            while not telling.done():
                # Not by one call for both: what is asked to give up costs ten times a sleep.
                message: Any = await pubsub.get_message(timeout=_LISTEN_S)
                if message is not None:
                    sharing.on_message(message["data"])
            await telling
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)


async def _tell(
    sharing: Sharing, client: "redis.asyncio.Redis", is_back: Callable[[], None]
) -> None:
    while True:
        # Nothing ticks where nothing is asked; what is asked soon after is told with it.
        await sharing.news()
        await asyncio.sleep(INTERVAL_S)
        own = sharing.take_message()
        if own is not None:
            await client.publish(CHANNEL, own)
            is_back()
