"""Keeps knowing how the engine does: one small request to it for each report to the mesh."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from services.inference.engines.dialect import Engine, EngineNotReadyError, Load
from services.inference.http_client import (
    EngineClient,
    EngineConnectionError,
    EngineTimeoutError,
)
from services.inference.state import EngineState

log = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 2.0
_TIMEOUTS_TO_DOWN = 2
_DOWN_INTERVAL_S = 0.25


class EngineWatch:
    """Probes the engine at an interval, and at once when a request found it down.

    Args:
        engine: The engine's dialect.
        client: Connections to it.
        state: Where what is known is kept.
        on_probe: Called after each probe.

    Attributes:
        interval_s: Seconds between probes of an engine that is up.
        load: What the latest probe said.
        generation: Counts how often what the engine serves has changed; 0 before it is known.
        described: Set once it is known what the engine serves.
    """

    def __init__(
        self,
        engine: Engine,
        client: EngineClient,
        state: EngineState,
        on_probe: Callable[[], Awaitable[None]],
    ) -> None:
        self._engine = engine
        self._client = client
        self._state = state
        self._on_probe = on_probe
        self._timeouts = 0
        self._is_described = False
        self.interval_s = 1.0
        self.load = Load()
        self.generation = 0
        self.described = asyncio.Event()

    async def run(self) -> None:
        """Watches forever."""
        while True:
            await self.probe()
            self._state.changed.clear()
            await self._on_probe()
            interval_s = (
                self.interval_s if self._state.is_up else min(self.interval_s, _DOWN_INTERVAL_S)
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._state.changed.wait()
                # A request found it down: the mesh learns of it before the next probe.
                await self._on_probe()

    async def probe(self) -> None:
        """Asks the engine how it does, and after it was down also what it serves."""
        was_up = self._state.is_up
        reason = ""
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                if not (self._is_described and was_up):
                    await self._describe()
                load = await self._engine.probe(self._client)
            self._timeouts = 0
            is_up = load is not None
            self.load = load or Load()
            reason = "it takes no requests"
        except (EngineConnectionError, EngineNotReadyError) as error:
            self._timeouts = 0
            is_up = False
            reason = str(error)
        except (TimeoutError, EngineTimeoutError):
            # A busy engine may miss one; what it last said of its load is old by now.
            self._timeouts += 1
            is_up = was_up and self._timeouts < _TIMEOUTS_TO_DOWN
            self.load = Load()
            reason = "it does not answer"
        if is_up != was_up:
            log.log(
                logging.INFO if is_up else logging.WARNING,
                "the engine is up" if is_up else "the engine is down",
                extra={} if is_up else {"reason": reason},
            )
        self._state.set_up(is_up)

    async def _describe(self) -> None:
        description = await self._engine.describe(self._client)
        self._is_described = True
        if self._state.describe(description):
            self.generation += 1
            log.info(
                "the engine serves",
                extra={
                    "models": [model.name for model in description.models],
                    "version": description.version,
                },
            )
        self.described.set()
