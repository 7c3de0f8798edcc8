"""Who gets a word with a service over TLS, and how renewed files come to count."""

import asyncio
import contextlib
import socket
import ssl
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.kit import tls
from services.kit.certificate_reading import read
from services.kit.channels import open_channel
from services.kit.server import CHANNEL_OPTIONS
from services.kit.tls_files import write_folder
from tls_world import World, check, eventually, refused, serve

AUTH = tls.service("auth")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def shown_serial(address: str, world: World, folder: Path) -> str:
    """Returns the serial number of the certificate that a server shows."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=world.path / folder / tls.CA_FILE)
    context.check_hostname = False
    context.load_cert_chain(folder / tls.CERTIFICATE_FILE, folder / tls.KEY_FILE)
    with (
        socket.create_connection((host, int(port)), 5) as plain,
        context.wrap_socket(plain, server_hostname="x") as secure,
    ):
        return f"{int(secure.getpeercert()['serialNumber'], 16):x}"


@pytest.mark.parametrize("name", [tls.ENVOY, tls.service("metrics")])
async def test_envoy_and_services_are_let_in(world: World, name: str) -> None:
    async with serve(world.issue(AUTH)) as address:
        await check(address, world.issue(name), AUTH)


async def test_nodes_and_whoever_is_unknown_are_not(world: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other")
    ca = world.ca.certificate
    async with serve(world.issue(AUTH)) as address:
        assert await refused(address, world.issue(tls.node("gpu-1")), AUTH)
        assert await refused(address, None, AUTH)
        # Signed by another authority, whatever it says.
        assert await refused(address, other.issue(tls.ENVOY, trusts=ca), AUTH)
        front = world.authority.issue_front(["localhost"], timedelta(days=1))
        files = {"ca.pem": ca, "cert.pem": front.certificate, "key.pem": front.key}
        write_folder(tmp_path / "front", files)
        assert await refused(address, tmp_path / "front", AUTH)
        # Without any certificate, as a browser comes.
        channel = grpc.aio.secure_channel(
            address,
            grpc.ssl_channel_credentials(ca),
            options=(*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", tls.dns_of(AUTH))),
        )
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=15
                )
        await check(address, world.issue(tls.ENVOY), AUTH)


async def test_expired_certificates_are_refused(world: World) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=3)
    async with serve(world.issue(AUTH)) as address:
        assert await refused(address, world.issue(tls.ENVOY, now=long_ago), AUTH)
        await check(address, world.issue(tls.ENVOY), AUTH)
    async with serve(world.issue(AUTH, now=long_ago)) as address:
        assert await refused(address, world.issue(tls.ENVOY), AUTH)


async def test_a_client_talks_to_the_part_that_it_means_only(world: World) -> None:
    async with serve(world.issue(tls.service("metrics"))) as address:
        envoy = world.issue(tls.ENVOY)
        assert await refused(address, envoy, AUTH)
        assert await refused(address, envoy, tls.node("metrics"))
        await check(address, envoy, tls.service("metrics"))


async def test_a_node_admits_those_that_its_settings_say(world: World) -> None:
    allow = (tls.ENVOY, tls.service("registry"))
    async with serve(world.issue(tls.node("a")), tls_allow=allow) as address:
        await check(address, world.issue(tls.service("registry")), tls.node("a"))
        assert await refused(address, world.issue(tls.service("metrics")), tls.node("a"))
        assert await refused(address, world.issue(tls.node("b")), tls.node("a"))


async def test_older_tls_and_other_protocols_are_refused(world: World) -> None:
    folder = world.issue(tls.ENVOY)

    def shake(**changes: object) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=folder / "ca.pem")
        context.check_hostname = False
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        context.set_alpn_protocols(changes.pop("alpn", ["h2"]))
        for key, value in changes.items():
            setattr(context, key, value)
        plain = socket.create_connection((host, int(port)), 5)
        return context.wrap_socket(plain, server_hostname="x")

    async with serve(world.issue(AUTH)) as address:
        host, _, port = address.rpartition(":")
        with await asyncio.to_thread(shake) as good:
            assert good.version() == "TLSv1.3"
            # A resumed session is not verified again.
            assert await asyncio.to_thread(good.recv, 9) != b""
            assert not good.session.has_ticket
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(shake, maximum_version=ssl.TLSVersion.TLSv1_2)
        with (
            await asyncio.to_thread(shake, alpn=["http/1.1"]) as bad,
            contextlib.suppress(ConnectionError, ssl.SSLError),
        ):
            assert await asyncio.to_thread(bad.recv, 9) == b""


def test_renewed_files_count_without_a_restart_and_calls_go_on(world: World) -> None:
    # On the loop that services run on. asyncio's own loses a connection that comes in the moment
    # in which a listener is replaced: `Server.close` comes between its accept and its transport.
    with futures.ThreadPoolExecutor(1) as thread:
        thread.submit(uvloop.run, renewed(world)).result(60)


async def renewed(world: World) -> None:
    folder, mine = world.issue(AUTH), world.issue(tls.ENVOY)
    async with serve(folder) as address, open_channel(address, AUTH, mine) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == 1
        before = await asyncio.to_thread(shown_serial, address, world, mine)
        calls = 0
        failed = []

        async def call_all_the_time() -> None:
            nonlocal calls
            while True:
                try:
                    await stub.Check(health_pb2.HealthCheckRequest(), timeout=15)
                    calls += 1
                except grpc.aio.AioRpcError as error:
                    failed.append(error)
                await asyncio.sleep(0.002)

        load = asyncio.create_task(call_all_the_time())
        world.issue(AUTH)
        world.issue(tls.ENVOY)
        renewed = read((folder / "cert.pem").read_bytes()).serial

        async def is_renewed() -> bool:
            return await asyncio.to_thread(shown_serial, address, world, mine) == renewed

        assert renewed != before
        await eventually(is_renewed)
        # A new authority: first trusted by both, then alone.
        other = World(world.path)
        both = world.ca.certificate + other.ca.certificate
        for trusts, signer in ((both, world), (both, other), (other.ca.certificate, other)):
            for name in (AUTH, tls.ENVOY):
                signer.issue(name, trusts=trusts)
            await asyncio.sleep(3.5)
        load.cancel()
        assert not failed
        assert calls > 50
        # The old authority's word is no good any more.
        old = world.issue(tls.service("old"), trusts=both)
        assert await refused(address, old, AUTH)
        assert not watch.done()
        watch.cancel()


async def test_half_written_files_leave_the_old_ones_in_place(world: World) -> None:
    folder, mine = world.issue(AUTH), world.issue(tls.ENVOY)
    async with serve(folder) as address, open_channel(address, AUTH, mine) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for broken in (folder, mine):
            # A key that is not the certificate's.
            (broken / "..data" / "key.pem").write_bytes(world.authority.issue("envoy").key)
        await asyncio.sleep(1.5)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=15)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=15)
        await check(address, world.issue(tls.service("metrics")), AUTH)


async def test_a_peer_whose_certificate_expires_is_seen_off(world: World) -> None:
    mine = world.issue(tls.ENVOY, timedelta(seconds=5))
    async with serve(world.issue(AUTH)) as address, open_channel(address, AUTH, mine) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=15)

        async def is_refused() -> bool:
            try:
                await stub.Check(health_pb2.HealthCheckRequest(), timeout=15)
            except grpc.aio.AioRpcError:
                return True
            return False

        await eventually(is_refused, 30)


async def test_certificates_that_live_for_seconds_are_enough(world: World) -> None:
    """Each is renewed before it expires, and the server sees off whoever comes with an old one."""
    mine = world.issue(tls.ENVOY, timedelta(seconds=7))
    begin = asyncio.get_running_loop().time()
    async with serve(world.issue(AUTH)) as address, open_channel(address, AUTH, mine) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        renewed = begin
        while (now := asyncio.get_running_loop().time()) < begin + 15:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=15)
            if now > renewed + 2:
                renewed = now
                world.issue(tls.ENVOY, timedelta(seconds=7))
            await asyncio.sleep(0.05)


async def test_a_service_without_its_files_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="cannot serve"):
        async with serve(tmp_path / "none"):
            pass
