"""Puts the checking of bearer tokens together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from sqlalchemy.ext.asyncio import AsyncEngine

from services.auth.oidc.adoption import Adoption
from services.auth.oidc.bearer import BearerTokens
from services.auth.oidc.config import IssuerSettings
from services.auth.oidc.fetching import Fetcher
from services.auth.oidc.issuer import Issuer
from services.auth.postgres_tenants import ensure_project
from services.kit.database import transaction


@contextlib.asynccontextmanager
async def opened(
    issuers: Sequence[IssuerSettings], engine: AsyncEngine
) -> AsyncIterator[BearerTokens]:
    """Keeps the issuers' keys current for as long as the context lasts.

    An issuer that is out of reach does not hold up the start: until it is there, its tokens are
    refused.

    Args:
        issuers: The issuers.
        engine: Where tenants are.
    """

    async def make(tenant: str, project: str) -> None:
        async with transaction(engine) as connection:
            await ensure_project(connection, tenant, project)

    adoption = Adoption(make)
    async with contextlib.AsyncExitStack() as stack:
        known = []
        for settings in issuers:
            fetcher = Fetcher(settings)
            stack.push_async_callback(fetcher.close)
            known.append(Issuer(settings, fetcher.key_set))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        running = [tasks.create_task(adoption.run(), name="token tenants")]
        for each in known:
            name = f"keys of {each.settings.name}"
            running.append(tasks.create_task(each.run(), name=name))
        yield BearerTokens(known, adoption.note)
        for task in running:
            task.cancel()
