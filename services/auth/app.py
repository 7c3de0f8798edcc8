"""Puts the auth service together."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from infermesh.access.v1 import access_pb2
from infermesh.auth.v1 import (
    audit_service_pb2_grpc,
    join_token_service_pb2_grpc,
    key_service_pb2,
    key_service_pb2_grpc,
    tenant_service_pb2_grpc,
)
from services.auth import access, audit_log, audit_policy, check, contracts
from services.auth.audit_outcomes import audited
from services.auth.decision import Decider
from services.auth.follower import Follower
from services.auth.keyring import Keyring
from services.auth.keys import BOOTSTRAP_ADMIN_ID, BOOTSTRAP_NODE_ID, Keys
from services.auth.last_use import LastUse
from services.auth.postgres_store import PostgresKeyStore
from services.auth.postgres_tenants import PostgresTenants, metadata
from services.auth.servicer import KeyServicer
from services.auth.servicer_audit import AuditServicer
from services.auth.servicer_tenants import TenantServicer
from services.auth.servicer_tokens import JoinTokenServicer
from services.auth.settings import AuthSettings
from services.auth.tokens import Tokens
from services.kit.database import create_tables, make_engine
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
            tenants = PostgresTenants(engine)
            await tenants.adopt()
            follower, last_use = Follower(url, store, ring), LastUse(ring, store)
            await stack.enter_async_context(_following(follower, last_use))

            recorder = await stack.enter_async_context(
                audit_log.opened(
                    engine, settings.state_dir / "audit", settings.audit_retention_days
                )
            )
            table = audit_policy.mark(
                access.build_table(services), inference=settings.audit_inference
            )
            decider = Decider(ring, table, access.ModelNames(), recorder)
            check.add_to_server(decider, server)
            key_servicer = KeyServicer(keys)
            key_service_pb2_grpc.add_KeyServiceServicer_to_server(
                key_servicer, audited(server, recorder, key_servicer)
            )
            tenant_servicer = TenantServicer(tenants)
            tenant_service_pb2_grpc.add_TenantServiceServicer_to_server(
                tenant_servicer, audited(server, recorder, tenant_servicer)
            )
            token_servicer = JoinTokenServicer(Tokens(keys))

            async def find_token(request: Any, context: Any) -> key_service_pb2.Key:
                key_id = key_service_pb2.GetKeyRequest(key_id=request.token_id)
                return await key_servicer.GetKey(key_id, context)

            join_token_service_pb2_grpc.add_JoinTokenServiceServicer_to_server(
                token_servicer,
                audited(server, recorder, token_servicer, {"RevokeJoinToken": find_token}),
            )
            audit_servicer = AuditServicer(engine)
            audit_service_pb2_grpc.add_AuditServiceServicer_to_server(
                audit_servicer, audited(server, recorder, audit_servicer)
            )
            log.info("keys loaded", extra={"keys": len(ring)})
            # Envoy sends reflection here, so that this reflection describes the whole mesh.
            yield [str(service.full_name) for service in services]

    return app


async def _ensure_bootstrap_keys(keys: Keys, settings: AuthSettings) -> None:
    for key_id, secret, name, role in (
        (
            BOOTSTRAP_ADMIN_ID,
            settings.bootstrap_admin_key,
            "bootstrap admin",
            access_pb2.ROLE_ADMIN,
        ),
        (
            BOOTSTRAP_NODE_ID,
            settings.bootstrap_node_key,
            "bootstrap node",
            access_pb2.ROLE_NODE,
        ),
    ):
        if secret is not None and await keys.ensure(key_id, secret.get_secret_value(), name, role):
            log.info("bootstrap key set", extra={"key_id": key_id})


@contextlib.asynccontextmanager
async def _following(follower: Follower, last_use: LastUse) -> AsyncIterator[None]:
    # A follower that fails takes the process down with it: keys that are no longer followed would
    # go on opening the door after they are revoked.
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(follower.run(), name="key-follower")
        async with asyncio.timeout(_FIRST_LOAD_TIMEOUT_S):
            await follower.ready.wait()
        writer = tasks.create_task(last_use.run(), name="key-last-use")
        yield
        task.cancel()
        writer.cancel()
        await last_use.flush()
