"""Puts the audit log together: recorder, spool, chain, and the retention of old events."""

import asyncio
import contextlib
import datetime
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from services.auth.audit import Recorder
from services.auth.audit_store import MAX_REMOVED, AuditStore, metadata
from services.kit.audit_spool import open_spool
from services.kit.database import create_tables
from services.kit.errors import StoreUnavailableError

log = logging.getLogger(__name__)

_SUMMARY_INTERVAL_S = 10.0
_RETENTION_INTERVAL_S = 3600.0


@contextlib.asynccontextmanager
async def opened(engine: AsyncEngine, directory: Path, days: int) -> AsyncIterator[Recorder]:
    """Opens the audit log and yields its recorder; on exit what waits is sent, or stays for later.

    Args:
        engine: The database.
        directory: Where events wait for it.
        days: After how many days events are removed; 0 keeps them.

    Raises:
        OSError: The directory cannot be used, or PostgreSQL does not come up within 30 s.
    """
    await create_tables(engine, metadata)
    store = AuditStore(engine)
    async with open_spool(directory, store.append) as spool:
        recorder = Recorder(spool.append)
        tasks = [asyncio.create_task(_summarise(recorder), name="audit summaries")]
        if days:
            tasks.append(asyncio.create_task(_retain(store, recorder, days), name="retention"))
        try:
            yield recorder
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            recorder.summarise()


async def retain(store: AuditStore, recorder: Recorder, now: datetime.datetime, days: int) -> int:
    """Removes events that are older than so many days; returns how many."""
    removed, part = 0, MAX_REMOVED
    before = now - datetime.timedelta(days=days)
    while part == MAX_REMOVED:
        part = await store.remove(before, recorder.checkpoint())
        removed += part
    return removed


async def _summarise(recorder: Recorder) -> None:
    while True:
        await asyncio.sleep(_SUMMARY_INTERVAL_S)
        recorder.summarise()


async def _retain(store: AuditStore, recorder: Recorder, days: int) -> None:
    while True:
        try:
            if removed := await retain(store, recorder, datetime.datetime.now(datetime.UTC), days):
                log.info("old audit events removed", extra={"count": removed, "days": days})
        except StoreUnavailableError as error:
            # `transaction` has warned of it; the next hour will do.
            log.debug("old audit events stay for now", extra={"error": repr(error)})
        except Exception:
            log.exception("old audit events cannot be removed")
        await asyncio.sleep(_RETENTION_INTERVAL_S)
