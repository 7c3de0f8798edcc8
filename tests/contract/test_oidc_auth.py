"""Auth with a real issuer of tokens beside it, on a real PostgreSQL."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import grpc
import pytest
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc

import oidc_issuer
import support
from infermesh.auth.v1 import tenant_service_pb2, tenant_service_pb2_grpc
from oidc_issuer import IssuerProcess
from services.auth.app import make_app
from services.auth.oidc import issuer as issuer_module
from services.auth.settings import AuthSettings
from services.kit import server

LIST_MODELS = "/infermesh.routing.v1.OpenAIModelService/ListOpenAIModels"
LIST_KEYS = "/infermesh.auth.v1.KeyService/ListKeys"

OK = 0
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED.value[0]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
DENIED = grpc.StatusCode.PERMISSION_DENIED.value[0]


class Replica:
    """Stubs to one replica of auth."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address)
        self.tenants = tenant_service_pb2_grpc.TenantServiceStub(self.channel)
        self._authorization = external_auth_pb2_grpc.AuthorizationStub(self.channel)

    async def check(self, token: str, path: str = LIST_MODELS) -> int:
        """Returns the gRPC status that the caller of a path gets, 0 for leave to go on."""
        request = external_auth_pb2.CheckRequest()
        http = request.attributes.request.http
        http.method, http.path = "POST", path
        http.headers["authorization"] = f"Bearer {token}"
        http.headers["content-type"] = "application/grpc"
        reply = await self._authorization.Check(request, timeout=20)
        return int(reply.status.code)

    async def becomes(self, token: str, code: int, limit_s: float) -> None:
        """Waits until a token is answered so."""
        deadline = time.monotonic() + limit_s
        while (found := await self.check(token)) != code:
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.05)


@pytest.fixture
def issuer(free_port: Callable[[], int]) -> Iterator[IssuerProcess]:
    with oidc_issuer.running(free_port()) as process:
        yield process


@asynccontextmanager
async def running(postgres_url: str, issuer: IssuerProcess) -> AsyncIterator[Replica]:
    said = {
        "name": "acme",
        "issuer": issuer.url,
        "audience": oidc_issuer.AUDIENCE,
        "tenant_claim": "tenant",
        "project_claim": "team",
        "role_claim": "realm_access.roles",
        "roles": {"mesh-admin": "admin"},
        "default_role": "user",
    }
    settings = AuthSettings.model_validate(
        {
            "database_url": postgres_url,
            "key_hash_secret": "s" * 32,
            "drain_s": 0.2,
            "state_dir": support.state_dir(),
            "oidc_issuers": json.dumps([said]),
        }
    )
    async with server.serving(settings, make_app(settings)) as address:
        replica = Replica(address)
        try:
            yield replica
        finally:
            await replica.channel.close()


@pytest.fixture
async def replica(postgres_url: str, issuer: IssuerProcess) -> AsyncIterator[Replica]:
    async with running(postgres_url, issuer) as one:
        yield one


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_tokens_of_the_issuer_open_the_door(
    replica: Replica, issuer: IssuerProcess, algorithm: str
) -> None:
    token = issuer.token(algorithm, tenant="oidc-a", team="search")
    assert await replica.check(token) == OK
    assert await replica.check(token, LIST_KEYS) == DENIED
    roles = {"roles": ["mesh-admin"]}
    admin = issuer.token(algorithm, tenant="oidc-a", team="search", realm_access=roles)
    assert await replica.check(admin, LIST_KEYS) == OK
    assert (
        await replica.check(issuer.token(algorithm, -60, tenant="a", team="b")) == UNAUTHENTICATED
    )
    assert await replica.check(issuer.token(algorithm, tenant="a")) == UNAUTHENTICATED


async def test_their_tenants_and_projects_are_listed(
    replica: Replica, issuer: IssuerProcess
) -> None:
    assert await replica.check(issuer.token(tenant="oidc-new", team="search")) == OK
    asked = tenant_service_pb2.ListProjectsRequest(tenant="oidc-new")
    deadline = time.monotonic() + 20
    while True:
        try:
            found = await replica.tenants.ListProjects(asked, timeout=20)
            break
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
    assert {project.project for project in found.projects} == {"default", "search"}


async def test_a_rotation_is_seen_with_the_first_token_of_the_new_key(
    replica: Replica, issuer: IssuerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_module, "MIN_SPACING_S", 0.2)
    old = issuer.token(tenant="a", team="b")
    assert await replica.check(old) == OK
    issuer.rotate(keep=True)
    await asyncio.sleep(0.2)
    asked = issuer.requests()
    new = [issuer.token(tenant="a", team="b", sub=str(number)) for number in range(20)]
    assert await asyncio.gather(*map(replica.check, new)) == [OK] * 20
    assert issuer.requests() == asked + 1
    assert await replica.check(old) == OK

    issuer.rotate(keep=False)
    await asyncio.sleep(0.2)
    assert await replica.check(issuer.token(tenant="a", team="b")) == OK
    # What the issuer withdrew is out with the fetch that shows it, cached or not.
    assert await asyncio.gather(*map(replica.check, [old, *new])) == [UNAUTHENTICATED] * 21


async def test_made_up_keys_make_no_load_on_the_issuer(
    replica: Replica, issuer: IssuerProcess
) -> None:
    token = issuer.token(tenant="a", team="b")
    await replica.becomes(token, OK, 20)
    asked = issuer.requests()
    issuer.rotate(keep=False)
    strangers = [issuer.token(tenant="a", team="b", sub=str(number)) for number in range(200)]
    start = time.monotonic()
    refused = await asyncio.gather(*map(replica.check, strangers))
    # At most one fetch in ten seconds, and the first is not yet that old.
    assert refused == [UNAUTHENTICATED] * 200
    assert issuer.requests() == asked
    assert time.monotonic() - start < 30
    assert await replica.check(token) == OK


async def test_the_issuer_may_be_away_for_a_time(
    postgres_url: str, issuer: IssuerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_module, "MIN_SPACING_S", 0.2)
    async with running(postgres_url, issuer) as replica:
        known, unseen = (issuer.token(tenant="a", team="b", sub=each) for each in "ab")
        await replica.becomes(known, OK, 20)
        issuer.stop()
        await asyncio.sleep(0.2)
        assert await replica.check(known) == OK
        assert await replica.check(unseen) == OK

    # A replica that starts now has no keys: nobody is let in on trust.
    async with running(postgres_url, issuer) as replica:
        assert await replica.check(known) == UNAVAILABLE
        issuer.start()
        assert await replica.check(known) in (UNAVAILABLE, UNAUTHENTICATED)
        await replica.becomes(issuer.token(tenant="a", team="b"), OK, 40)
        # It came back with other keys.
        assert await replica.check(known) == UNAUTHENTICATED
