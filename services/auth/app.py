"""Puts the auth service together."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence

import grpc

from infermesh.access.v1 import access_pb2
from infermesh.auth.v1 import join_token_service_pb2_grpc, key_service_pb2_grpc
from services.auth import access, check, contracts
from services.auth.decision import Decider
from services.auth.follower import Follower
from services.auth.keyring import Keyring
from services.auth.keys import Keys
from services.auth.postgres_store import PostgresKeyStore, metadata
from services.auth.servicer import KeyServicer
from services.auth.servicer_tokens import JoinTokenServicer
from services.auth.settings import AuthSettings
from services.auth.tokens import Tokens
from services.kit.database import create_tables, make_engine
from services.kit.guard import guarded
from services.kit.server import App, Health

log = logging.getLogger(__name__)

_FIRST_LOAD_TIMEOUT_S = 30.0


def make_app(settings: AuthSettings) -> App:
    """Returns the app; it serves once all keys are in memory, and not before."""

    @contextlib.asynccontextmanager
    async def app(server: grpc.aio.Server, _: Health) -> AsyncIterator[Sequence[str]]:
        url = settings.database_url.get_secret_value()
        ring = Keyring(settings.key_hash_secret.get_secret_value().encode())
        services = contracts.services()
        async with contextlib.AsyncExitStack() as stack:
            engine = make_engine(url)
            stack.push_async_callback(engine.dispose)
            await create_tables(engine, metadata)
            store = PostgresKeyStore(engine)
            keys = Keys(store, ring)
            await _ensure_bootstrap_keys(keys, settings)
            await stack.enter_async_context(_following(Follower(url, store, ring)))

            decider = Decider(ring, access.build_table(services), access.ModelNames())
            check.add_to_server(decider, server)
            key_service_pb2_grpc.add_KeyServiceServicer_to_server(
                KeyServicer(keys), guarded(server)
            )
            join_token_service_pb2_grpc.add_JoinTokenServiceServicer_to_server(
                JoinTokenServicer(Tokens(keys)), guarded(server)
            )
            log.info("keys loaded", extra={"keys": len(ring)})
            # Envoy sends reflection here, so that this reflection describes the whole mesh.
            yield [str(service.full_name) for service in services]

    return app


async def _ensure_bootstrap_keys(keys: Keys, settings: AuthSettings) -> None:
    for key_id, secret, name, role in (
        (
            "key_bootstrapadmin",
            settings.bootstrap_admin_key,
            "bootstrap admin",
            access_pb2.ROLE_ADMIN,
        ),
        (
            "key_bootstrapnode",
            settings.bootstrap_node_key,
            "bootstrap node",
            access_pb2.ROLE_NODE,
        ),
    ):
        if secret is not None and await keys.ensure(key_id, secret.get_secret_value(), name, role):
            log.info("bootstrap key set", extra={"key_id": key_id})


@contextlib.asynccontextmanager
async def _following(follower: Follower) -> AsyncIterator[None]:
    # A follower that fails takes the process down with it: keys that are no longer followed would
    # go on opening the door after they are revoked.
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(follower.run(), name="key-follower")
        async with asyncio.timeout(_FIRST_LOAD_TIMEOUT_S):
            await follower.ready.wait()
        yield
        task.cancel()
