"""One issuer, and its keys kept current."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from services.auth.oidc import keys
from services.auth.oidc.config import IssuerSettings
from services.auth.oidc.fetching import Document, FetchError
from services.auth.oidc.keys import KeySet, SigningKey

log = logging.getLogger(__name__)

_INTERVAL_S, _MIN_INTERVAL_S, _MAX_INTERVAL_S = 600.0, 60.0, 3600.0
_FIRST_RETRY_S, _MAX_RETRY_S = 1.0, 60.0

MIN_SPACING_S = 10.0
"""Tokens with unknown keys make no more than one request to the issuer in this time."""

# Less than the 2 s that Envoy waits for auth, so that the caller is told why.
_MAX_WAIT_S = 1.5
_MAX_WAITING = 256


class Issuer:
    """Knows an issuer's keys, and gets them again: in time, and when a token names a new one.

    Keys that were fetched are good until the issuer shows others, or for `keys_max_age_s` where it
    is out of reach.

    Args:
        settings: Which issuer, and what its tokens mean.
        fetch: Returns its key set. Raises `FetchError`.
        clock: The time in seconds since 1970.
        monotonic: A clock in seconds that nobody sets.

    Attributes:
        settings: As given.
    """

    def __init__(
        self,
        settings: IssuerSettings,
        fetch: Callable[[], Awaitable[Document]],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._fetch = fetch
        self._clock = clock
        self._monotonic = monotonic
        self._keys = KeySet()
        self._until_s = 0.0
        self._failures = 0
        self._began_s = float("-inf")
        self._round: asyncio.Future[None] | None = None
        self._waiting = 0
        self._wanted = asyncio.Event()

    def is_known(self) -> bool:
        """Says whether there are keys to check tokens by."""
        return self._clock() < self._until_s

    def find(self, kid: str | None, algorithm: str) -> SigningKey | None:
        """Returns the key for a token, or None where it has none that may be used."""
        key = self._keys.find(kid, algorithm)
        return None if key is None or self._clock() >= key.until_s else key

    def can_ask(self) -> bool:
        """Says whether it is worth waiting for keys: they come, or may be asked for again."""
        if self._waiting >= _MAX_WAITING:
            return False
        return self._round is not None or self._monotonic() - self._began_s >= MIN_SPACING_S

    def ask(self) -> "asyncio.Task[None]":
        """Asks for the keys once more, for all who ask meanwhile at once.

        Returns:
            What ends when they were asked for, well or not, and in 1.5 s at the latest.
        """
        if self._round is None:
            self._start_round()
        assert self._round is not None  # noqa: S101 - it was made
        self._waiting += 1
        task = asyncio.ensure_future(_wait_for(self._round))
        task.add_done_callback(self._on_waited)
        return task

    async def run(self) -> None:
        """Fetches now and whenever it is time or asked for, until it is cancelled."""
        while True:
            delay_s = await self.refresh()
            self._wanted.clear()
            try:
                async with asyncio.timeout(delay_s):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    async def refresh(self) -> float:
        """Fetches the keys once; returns after how many seconds to do it again."""
        if self._round is None:
            self._start_round()
        try:
            document = await self._fetch()
            found = keys.read(document.content, self.settings.algorithms)
        except (FetchError, ValueError) as error:
            return self._failed(str(error))
        except Exception:
            # Whatever an issuer writes, the other callers' door stays open.
            log.exception("an issuer's keys cannot be read", extra=self._extra())
            return self._failed("see above")
        finally:
            done, self._round = self._round, None
            if done is not None and not done.done():
                done.set_result(None)
        self._until_s = self._clock() + self.settings.keys_max_age_s
        self._keys.replace(found, self._until_s)
        if self._failures:
            log.info("an issuer of tokens is back", extra=self._extra())
        self._failures = 0
        if document.max_age_s is None:
            return _INTERVAL_S
        return min(max(document.max_age_s, _MIN_INTERVAL_S), _MAX_INTERVAL_S)

    def _start_round(self) -> None:
        self._began_s = self._monotonic()
        self._round = asyncio.get_running_loop().create_future()
        self._wanted.set()

    def _on_waited(self, _: "asyncio.Task[None]") -> None:
        self._waiting -= 1

    def _failed(self, why: str) -> float:
        if not self._failures:
            log.warning(
                "an issuer of tokens is out of reach; its last keys are used for a time",
                extra={**self._extra(), "why": why},
            )
        self._failures += 1
        return min(_FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 10), _MAX_RETRY_S)

    def _extra(self) -> dict[str, object]:
        return {"issuer": self.settings.name, "keys": len(self._keys)}


async def _wait_for(fetched: "asyncio.Future[None]") -> None:
    await asyncio.wait([fetched], timeout=_MAX_WAIT_S)
