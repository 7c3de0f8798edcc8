"""Keeps knowing how the engine does: one small request to it for each report to the mesh."""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable

from services.inference.engine_instance import EngineInstance
from services.inference.engines.dialect import (
    Description,
    Engine,
    EngineNotReadyError,
    Load,
)
from services.inference.http_client import (
    EngineClient,
    EngineConnectError,
    EngineConnectionError,
    EngineTimeoutError,
)
from services.inference.state import EngineState

log = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 2.0
_REMOTE_TIMEOUT_S = 10.0
_TIMEOUTS_TO_DOWN = 2
_DOWN_INTERVAL_S = 0.25
# An engine that is told to stop finishes its streams; one that is dead may leave them open.
_SILENCE_OF_ONE_DOWN_S = 5.0
_DESCRIBE_INTERVAL_S = 15.0
# What is asked rarely how it does is asked still more rarely what it serves.
_PROBES_TO_DESCRIBE = 10
_PROBES_OF_ONE_DOWN = 1 / 30
# What the registry takes.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
_MAX_MODELS = 256


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
        self._instance = EngineInstance()
        self._timeouts = 0
        self._probed_s = 0.0
        self._is_described = False
        self._described_s = 0.0
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
            interval_s = self.interval_s
            if not self._state.is_up:
                rarely_s = self._engine.probe_interval_s * _PROBES_OF_ONE_DOWN
                interval_s = max(min(interval_s, _DOWN_INTERVAL_S), rarely_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._state.changed.wait()
                # A request found it down: the mesh learns of it before the next probe.
                await self._on_probe()

    async def refresh(self) -> None:
        """Asks the engine at once how it does and what it serves."""
        self._is_described = False
        await self.probe()
        await self._on_probe()

    async def probe(self) -> None:
        """Asks the engine how it does, and after it was down also what it serves.

        What it serves can change without a restart, so that is asked again every 15 s.
        """
        was_up = self._state.is_up
        rarely_s = self._engine.probe_interval_s
        if was_up and self._is_described and time.monotonic() - self._probed_s < rarely_s:
            return
        reason = ""
        try:
            async with asyncio.timeout(self._timeout_s):
                if not (self._is_described and was_up):
                    await self._describe()
                load = await self._engine.probe(self._client)
            self._timeouts = 0
            self._probed_s = time.monotonic()
            is_up = load is not None
            self.load = load or Load()
            if load is not None and self._instance.is_new(load):
                self._state.engine_generation += 1
                log.info("the engine has started again")
            reason = "it takes no requests"
        except (EngineConnectionError, EngineNotReadyError) as error:
            self._timeouts = 0
            is_up = False
            self.load = Load()
            if isinstance(error, EngineConnectError):
                self._instance.note_away()
            reason = str(error)
        except (TimeoutError, EngineTimeoutError):
            # A busy engine may miss one; what it last said of its load is old by now.
            self._timeouts += 1
            is_up = was_up and self._timeouts < _TIMEOUTS_TO_DOWN
            self.load = Load()
            reason = "it does not answer"
        described_for_s = time.monotonic() - self._described_s
        if is_up and described_for_s > max(_DESCRIBE_INTERVAL_S, rarely_s * _PROBES_TO_DESCRIBE):
            await self._describe_again()
        if is_up != was_up:
            log.log(
                logging.INFO if is_up else logging.WARNING,
                "the engine is up" if is_up else "the engine is down",
                extra={} if is_up else {"reason": reason},
            )
        # Also when a request found it down before this probe did.
        self._client.hurry(None if is_up else _SILENCE_OF_ONE_DOWN_S)
        self._state.set_up(is_up)

    @property
    def _timeout_s(self) -> float:
        # What is asked rarely is far away.
        return _REMOTE_TIMEOUT_S if self._engine.probe_interval_s else _PROBE_TIMEOUT_S

    async def _describe_again(self) -> None:
        # A busy engine may be slow to say; what it said before stands.
        self._described_s = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._describe()
        except (
            EngineConnectionError,
            EngineNotReadyError,
            EngineTimeoutError,
            TimeoutError,
        ) as error:
            log.debug("the engine does not say what it serves", extra={"error": repr(error)})

    async def _describe(self) -> None:
        description = _servable(await self._engine.describe(self._client))
        self._is_described = True
        self._described_s = time.monotonic()
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


def _servable(description: Description) -> Description:
    """Returns the description with the models that the mesh can serve.

    Raises:
        EngineNotReadyError: There is none, or there are more than a node may serve.
    """
    models = tuple(model for model in description.models if _NAME.fullmatch(model.name))
    if not models:
        names = [model.name for model in description.models[:3]]
        raise EngineNotReadyError(f"none of the engine's models has a name for the mesh: {names}")
    if len(models) > _MAX_MODELS:
        raise EngineNotReadyError(
            f"the engine has {len(models)} models: INFERMESH_ENGINE_MODELS must name some"
        )
    return Description(description.version, models)
