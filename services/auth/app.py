"""Puts the auth service together."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import grpc
from sqlalchemy.ext.asyncio import AsyncEngine

from infermesh.access.v1 import access_pb2
from infermesh.auth.v1 import (
    admission_service_pb2_grpc,
    audit_service_pb2_grpc,
    certificate_service_pb2_grpc,
    join_token_service_pb2_grpc,
    key_check_service_pb2_grpc,
    key_service_pb2,
    key_service_pb2_grpc,
    tenant_service_pb2_grpc,
)
from services.auth import access, audit_log, audit_policy, contracts, limits_app, routes
from services.auth.decision import Decider
from services.auth.follower import Followed, FollowedKeys, Follower
from services.auth.keyring import Keyring
from services.auth.keys import BOOTSTRAP_ADMIN_ID, BOOTSTRAP_NODE_ID, Keys
from services.auth.last_use import LastUse
from services.auth.limits import FollowedLimits, LimitBook
from services.auth.postgres_limits import CHANNEL as LIMITS_CHANNEL
from services.auth.postgres_limits import PostgresLimits
from services.auth.postgres_store import PostgresKeyStore
from services.auth.postgres_tenants import PostgresTenants, metadata
from services.auth.servicer import KeyServicer
from services.auth.servicer_admission import AdmissionServicer
from services.auth.servicer_audit import AuditServicer
from services.auth.servicer_certificates import CertificateServicer
from services.auth.servicer_key_check import KeyCheckServicer
from services.auth.servicer_tenants import TenantServicer
from services.auth.servicer_tokens import JoinTokenServicer
from services.auth.settings import AuthSettings
from services.auth.tokens import Tokens
from services.kit import authorization
from services.kit.audit_outcomes import audited
from services.kit.database import create_tables, make_engine
from services.kit.guard import guarded
from services.kit.server import App, Health
from services.kit.unary_client import UnaryClient, open_client

if TYPE_CHECKING:
    from services.auth.oidc.bearer import BearerTokens

log = logging.getLogger(__name__)

_FIRST_LOAD_TIMEOUT_S = 30.0


def make_app(settings: AuthSettings) -> App:
    """Returns the app; it serves once all keys are in memory, and not before."""

    @contextlib.asynccontextmanager
    async def app(server: grpc.aio.Server, health: Health) -> AsyncIterator[Sequence[str]]:
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
            book, limits = LimitBook(), PostgresLimits(engine)
            followed: list[Followed] = [
                FollowedKeys(store, ring),
                FollowedLimits(LIMITS_CHANNEL, limits, book),
            ]
            follower, last_use = Follower(url, followed), LastUse(ring, store)
            await stack.enter_async_context(_following(follower, last_use))

            recorder = await stack.enter_async_context(
                audit_log.opened(
                    engine, settings.state_dir / "audit", settings.audit_retention_days
                )
            )
            table = audit_policy.mark(
                access.build_table(services), inference=settings.audit_inference != "off"
            )
            bearers = await _open_bearers(stack, settings, engine)
            gate = await stack.enter_async_context(
                limits_app.opened(settings, limits, book, recorder, server, health)
            )
            decider = Decider(
                ring,
                table,
                access.ModelNames(),
                recorder,
                gate,
                bearers,
                await _open_routes(stack, settings),
                audits_bodies=settings.audit_inference == "bodies",
            )
            authorization.add_to_server(decider.decide, server)
            key_servicer = KeyServicer(keys)
            key_service_pb2_grpc.add_KeyServiceServicer_to_server(
                key_servicer, audited(server, recorder, key_servicer, reads=True)
            )
            tenant_servicer = TenantServicer(tenants)
            tenant_service_pb2_grpc.add_TenantServiceServicer_to_server(
                tenant_servicer, audited(server, recorder, tenant_servicer, reads=True)
            )
            token_servicer = JoinTokenServicer(Tokens(keys))

            async def find_token(request: Any, context: Any) -> key_service_pb2.Key:
                key_id = key_service_pb2.GetKeyRequest(key_id=request.token_id)
                return await key_servicer.GetKey(key_id, context)

            join_token_service_pb2_grpc.add_JoinTokenServiceServicer_to_server(
                token_servicer,
                audited(
                    server,
                    recorder,
                    token_servicer,
                    {"RevokeJoinToken": find_token},
                    reads=True,
                ),
            )
            certificates = CertificateServicer(keys, settings.ca_dir)
            certificate_service_pb2_grpc.add_CertificateServiceServicer_to_server(
                certificates, audited(server, recorder, certificates, reads=True)
            )
            key_check_service_pb2_grpc.add_KeyCheckServiceServicer_to_server(
                KeyCheckServicer(ring, table), guarded(server)
            )
            admission_service_pb2_grpc.add_AdmissionServiceServicer_to_server(
                AdmissionServicer(ring, table, decider, recorder, gate), guarded(server)
            )
            audit_servicer = AuditServicer(
                engine, takes_bodies=settings.audit_inference == "bodies"
            )
            audit_service_pb2_grpc.add_AuditServiceServicer_to_server(
                audit_servicer, audited(server, recorder, audit_servicer, reads=True)
            )
            log.info("keys loaded", extra={"keys": len(ring)})
            # Envoy sends reflection here, so that this reflection describes the whole mesh.
            yield [str(service.full_name) for service in services]

    return app


async def _open_routes(
    stack: contextlib.AsyncExitStack, settings: AuthSettings
) -> routes.Routes | None:
    if settings.routing_address is None:
        return None
    client = UnaryClient(
        settings.routing_address,
        authorization.METHOD,
        "service/routing",
        settings.tls_dir,
        routes.TIMEOUT_S,
    )
    await stack.enter_async_context(open_client(client))
    return routes.Routes(client)


async def _open_bearers(
    stack: contextlib.AsyncExitStack, settings: AuthSettings, engine: AsyncEngine
) -> "BearerTokens | None":
    if not settings.oidc_issuers:
        return None
    # Takes 10 MB, which those without issuers save.
    from services.auth.oidc.opened import opened

    return await stack.enter_async_context(opened(settings.oidc_issuers, engine))


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
