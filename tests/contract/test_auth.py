"""The auth service over gRPC, on a real PostgreSQL, with one replica, two, and a cut line."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
import sqlalchemy as sa
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

import support
from infermesh.access.v1 import access_pb2
from infermesh.auth.v1 import key_service_pb2, key_service_pb2_grpc
from services.auth.app import make_app
from services.auth.settings import AuthSettings
from services.kit import server
from services.kit.errors import MeshError, from_rpc_error

ADMIN_KEY = "im-" + "a" * 43
NODE_KEY = "im-" + "n" * 43
LIST_KEYS = "/infermesh.auth.v1.KeyService/ListKeys"
LIST_MODELS = "/infermesh.routing.v1.OpenAIModelService/ListOpenAIModels"


class Replica:
    """Stubs to one replica of auth."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.aio.insecure_channel(address)
        self.keys = key_service_pb2_grpc.KeyServiceStub(self.channel)
        self.authorization = external_auth_pb2_grpc.AuthorizationStub(self.channel)

    async def check(self, secret: str, path: str = LIST_MODELS) -> int:
        """Returns the gRPC status that the caller of a path gets, 0 for leave to go on."""
        request = external_auth_pb2.CheckRequest()
        http = request.attributes.request.http
        http.method = "POST"
        http.path = path
        http.headers["authorization"] = f"Bearer {secret}"
        http.headers["content-type"] = "application/grpc"
        reply = await self.authorization.Check(request, timeout=20)
        return int(reply.status.code)

    async def create(self, **fields: object) -> key_service_pb2.CreateKeyResponse:
        request = key_service_pb2.CreateKeyRequest(**{"display_name": "test", **fields})
        return await self.keys.CreateKey(request, timeout=15)


def settings(database_url: str, **fields: str) -> AuthSettings:
    values = {"database_url": database_url, "key_hash_secret": "s" * 32, "drain_s": 0.2}
    values |= {"bootstrap_admin_key": ADMIN_KEY, "bootstrap_node_key": NODE_KEY}
    values |= {"state_dir": support.state_dir()}
    return AuthSettings.model_validate(values | fields)


@asynccontextmanager
async def running(with_settings: AuthSettings) -> AsyncIterator[Replica]:
    async with server.serving(with_settings, make_app(with_settings)) as address:
        replica = Replica(address)
        try:
            yield replica
        finally:
            await replica.channel.close()


@pytest.fixture
async def replica(postgres_url: str) -> AsyncIterator[Replica]:
    async with running(settings(postgres_url)) as one:
        yield one


async def becomes(condition: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> float:
    """Waits for a condition to hold; returns the seconds that it took."""
    start = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while True:
            if await condition():
                return time.monotonic() - start
            await asyncio.sleep(0.005)


def refusal(caught: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> MeshError:
    error = from_rpc_error(caught.value)
    assert error is not None
    return error


async def test_the_life_of_a_key(replica: Replica) -> None:
    made = await replica.create(display_name="ci", tenant="acme")
    key = made.key
    assert (key.display_name, key.tenant, key.role) == ("ci", "acme", access_pb2.ROLE_USER)
    assert made.secret.startswith(key.prefix)
    assert not key.HasField("revoke_time")
    assert await replica.check(made.secret) == 0
    assert await replica.check(made.secret, LIST_KEYS) == grpc.StatusCode.PERMISSION_DENIED.value[0]

    assert await replica.keys.GetKey(key_service_pb2.GetKeyRequest(key_id=key.key_id)) == key
    revoked = await replica.keys.RevokeKey(key_service_pb2.RevokeKeyRequest(key_id=key.key_id))
    assert revoked.HasField("revoke_time")
    assert await replica.check(made.secret) == grpc.StatusCode.UNAUTHENTICATED.value[0]


async def test_bootstrap_keys_work_and_the_last_admin_key_stays(replica: Replica) -> None:
    assert await replica.check(ADMIN_KEY, LIST_KEYS) == 0
    assert await replica.check(NODE_KEY, "/infermesh.registry.v1.NodeService/AttachNode") == 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.keys.RevokeKey(key_service_pb2.RevokeKeyRequest(key_id="key_bootstrapadmin"))
    assert refusal(caught).reason_name == "FAILED_PRECONDITION"
    assert await replica.check(ADMIN_KEY, LIST_KEYS) == 0


async def test_pages(replica: Replica) -> None:
    for _ in range(3):
        await replica.create()
    token, seen = "", []
    while True:
        page = await replica.keys.ListKeys(
            key_service_pb2.ListKeysRequest(page_size=2, page_token=token)
        )
        seen += [key.key_id for key in page.keys]
        token = page.next_page_token
        if not token:
            break
    assert len(seen) == len(set(seen)) >= 5


@pytest.mark.parametrize(
    ("method", "request_", "reason", "param"),
    [
        ("GetKey", key_service_pb2.GetKeyRequest(key_id="key_zzzz"), "NOT_FOUND", None),
        ("GetKey", key_service_pb2.GetKeyRequest(key_id="\x00"), "NOT_FOUND", None),
        ("RevokeKey", key_service_pb2.RevokeKeyRequest(key_id="key_z"), "NOT_FOUND", None),
        ("GetKey", key_service_pb2.GetKeyRequest(), "INVALID_ARGUMENT", "key_id"),
        ("CreateKey", key_service_pb2.CreateKeyRequest(), "INVALID_ARGUMENT", "display_name"),
        (
            "CreateKey",
            key_service_pb2.CreateKeyRequest(display_name="a\x00"),
            "INVALID_ARGUMENT",
            "display_name",
        ),
        (
            "CreateKey",
            key_service_pb2.CreateKeyRequest(display_name="a", tenant="A B"),
            "INVALID_ARGUMENT",
            "tenant",
        ),
        (
            "ListKeys",
            key_service_pb2.ListKeysRequest(page_token="nope"),
            "INVALID_ARGUMENT",
            "page_token",
        ),
        (
            "ListKeys",
            key_service_pb2.ListKeysRequest(page_size=-1),
            "INVALID_ARGUMENT",
            "page_size",
        ),
    ],
)
async def test_refusals(
    replica: Replica, method: str, request_: object, reason: str, param: str | None
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(replica.keys, method)(request_)
    assert (refusal(caught).reason_name, refusal(caught).param) == (reason, param)


async def test_a_check_that_does_not_parse_is_denied(replica: Replica) -> None:
    check = replica.channel.unary_unary("/envoy.service.auth.v3.Authorization/Check")
    # attributes.request.http.path holds a byte that is not UTF-8.
    reply = external_auth_pb2.CheckResponse.FromString(
        await check(b"\x0a\x07\x22\x05\x12\x03\x22\x01\xff")
    )
    assert reply.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert reply.HasField("denied_response")


async def test_changes_reach_the_other_replica(postgres_url: str) -> None:
    config = settings(postgres_url)
    async with running(config) as one, running(config) as two:

        async def change() -> float:
            made = await one.create()

            async def accepted() -> bool:
                return await two.check(made.secret) == 0

            async def refused() -> bool:
                return await two.check(made.secret) != 0

            took_s = await becomes(accepted)
            await one.keys.RevokeKey(key_service_pb2.RevokeKeyRequest(key_id=made.key.key_id))
            return max(took_s, await becomes(refused))

        await support.becomes_within(0.5, change)


async def test_keys_outlive_the_process_and_a_changed_bootstrap_key_replaces_the_old(
    postgres_url: str,
) -> None:
    async with running(settings(postgres_url)) as before:
        made = await before.create()
    changed = "im-" + "b" * 43
    async with running(settings(postgres_url, bootstrap_admin_key=changed)) as after:
        assert await after.check(made.secret) == 0
        assert await after.check(changed, LIST_KEYS) == 0
        assert await after.check(ADMIN_KEY) == grpc.StatusCode.UNAUTHENTICATED.value[0]


class Line:
    """A line to PostgreSQL that can be cut."""

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        self._open: set[asyncio.StreamWriter] = set()
        self._cut = False

    @asynccontextmanager
    async def laid(self) -> AsyncIterator[str]:
        """Forwards for as long as the context lasts; yields the URL that leads through here."""
        listener = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        try:
            yield self._url.set(host="127.0.0.1", port=port).render_as_string(False)
        finally:
            self.cut()
            listener.close()

    def cut(self) -> None:
        self._cut = True
        for writer in self._open:
            writer.transport.abort()

    def mend(self) -> None:
        self._cut = False

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        host, port = str(self._url.host), int(self._url.port or 5432)
        up_reader, up_writer = await asyncio.open_connection(host, port)
        self._open |= {writer, up_writer}
        await asyncio.gather(_pipe(reader, up_writer), _pipe(up_reader, writer))
        self._open -= {writer, up_writer}


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # The cut is what the test is about.
    finally:
        writer.close()


async def test_without_postgresql_it_decides_from_memory_and_catches_up(
    postgres_url: str,
) -> None:
    line = Line(postgres_url)
    async with (
        line.laid() as url,
        running(settings(postgres_url)) as other,
        running(settings(url)) as cut_off,
    ):
        made = await other.create()

        async def knows() -> bool:
            return await cut_off.check(made.secret) == 0

        await becomes(knows)
        line.cut()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cut_off.create()
        assert refusal(caught).reason_name == "STORE_UNAVAILABLE"
        assert await cut_off.check(ADMIN_KEY, LIST_KEYS) == 0

        await other.keys.RevokeKey(key_service_pb2.RevokeKeyRequest(key_id=made.key.key_id))
        later = await other.create()
        assert await knows()
        line.mend()

        async def caught_up() -> bool:
            return not await knows() and await cut_off.check(later.secret) == 0

        await becomes(caught_up)
        await cut_off.create()


async def test_reflection_describes_the_whole_mesh(replica: Replica) -> None:
    def read() -> tuple[set[str], list[str]]:
        with grpc.insecure_channel(replica.address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            names = set(database.get_services())
            file = database.FindFileContainingSymbol("infermesh.routing.v1.RoutingService")
            return names, [str(service.name) for service in file.service]

    names, described = await asyncio.to_thread(read)
    packages = {name.split(".")[1] for name in names if name.startswith("infermesh.")}
    platform = {"auth", "metrics", "registry", "routing"}
    assert packages == platform | {"embeddings", "inference", "jobs"}
    assert described == ["RoutingService"]


async def test_it_says_that_it_serves(replica: Replica) -> None:
    health = health_pb2_grpc.HealthStub(replica.channel)
    reply = await health.Check(health_pb2.HealthCheckRequest())
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
