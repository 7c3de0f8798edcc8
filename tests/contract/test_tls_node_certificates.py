"""Certificates for nodes: auth signs for the node that a token was redeemed for, and no other."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

import support
from infermesh.auth.v1 import (
    certificate_service_pb2,
    certificate_service_pb2_grpc,
    join_token_service_pb2,
    join_token_service_pb2_grpc,
    key_service_pb2,
    key_service_pb2_grpc,
)
from services.auth.app import make_app
from services.auth.settings import AuthSettings
from services.inference.certificate import NodeCertificate
from services.kit import headers, server, tls
from services.kit.certificate_reading import read
from services.kit.certificates import LEAF_LIFE, Authority, make_key, make_request
from services.kit.errors import from_rpc_error
from services.kit.tls import TlsFolder
from services.kit.tls_files import write_folder


class World:
    """Auth with an authority, called as Envoy calls it: with the caller's key id as a header."""

    def __init__(self, channel: grpc.aio.Channel, ca_dir: Path) -> None:
        self.keys = key_service_pb2_grpc.KeyServiceStub(channel)
        self.tokens = join_token_service_pb2_grpc.JoinTokenServiceStub(channel)
        self.certificates = certificate_service_pb2_grpc.CertificateServiceStub(channel)
        self.ca_dir = ca_dir

    async def redeem(self, node_id: str) -> str:
        """Returns the id of a node's key."""
        made = await self.tokens.CreateJoinToken(join_token_service_pb2.CreateJoinTokenRequest())
        got = await self.tokens.RedeemJoinToken(
            join_token_service_pb2.RedeemJoinTokenRequest(node_id=node_id),
            metadata=as_caller(made.token.token_id),
        )
        return str(got.key_id)

    async def issue(
        self, key_id: str, request: str = ""
    ) -> certificate_service_pb2.IssueNodeCertificateResponse:
        wanted = request or make_request(make_key(), "envoy").decode()
        return await self.certificates.IssueNodeCertificate(
            certificate_service_pb2.IssueNodeCertificateRequest(signing_request=wanted),
            metadata=as_caller(key_id),
        )

    async def refusal(self, key_id: str, request: str = "") -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.issue(key_id, request)
        error = from_rpc_error(caught.value)
        assert error is not None
        return error.reason_name


def as_caller(key_id: str) -> tuple[tuple[str, str], ...]:
    return ((headers.KEY_ID, key_id),)


@pytest.fixture
async def world(postgres_url: str, tmp_path: Path) -> AsyncIterator[World]:
    settings = AuthSettings(
        database_url=postgres_url,
        key_hash_secret="s" * 32,
        drain_s=0.2,
        state_dir=support.state_dir(),
        bootstrap_node_key="im-" + "n" * 43,
        ca_dir=tmp_path / "ca",
    )
    renew_authority(tmp_path / "ca")
    async with (
        server.serving(settings, make_app(settings)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield World(channel, tmp_path / "ca")


def renew_authority(folder: Path) -> bytes:
    ca = Authority.make()
    write_folder(folder, {"ca.pem": ca.certificate, "ca-key.pem": ca.key})
    return ca.certificate


async def test_a_node_gets_its_own_certificate_whatever_it_asks_for(world: World) -> None:
    key_id = await world.redeem("gpu-1")
    got = await world.issue(key_id)
    shown = read(got.certificate.encode())
    assert shown.name == "node/gpu-1"
    assert got.expire_time.ToDatetime(UTC) == shown.end
    assert timedelta(hours=23) < shown.end - datetime.now(UTC) <= LEAF_LIFE
    assert got.authorities == (world.ca_dir / "ca.pem").read_text()


async def test_a_name_for_people_is_no_proof(world: World) -> None:
    key_id = await world.redeem("gpu-2")
    await world.keys.UpdateKey(
        key_service_pb2.UpdateKeyRequest(key_id=key_id, display_name="node gpu-3")
    )
    assert read((await world.issue(key_id)).certificate.encode()).name == "node/gpu-2"
    rotated = await world.keys.RotateKey(key_service_pb2.RotateKeyRequest(key_id=key_id))
    assert rotated.key.key_id == key_id
    assert read((await world.issue(key_id)).certificate.encode()).name == "node/gpu-2"


async def test_keys_that_are_no_one_nodes_get_none(world: World) -> None:
    assert await world.refusal("key_bootstrapnode") == "FAILED_PRECONDITION"
    assert await world.refusal("key_unknown") == "NOT_FOUND"


@pytest.mark.parametrize(
    "request_", ["x" * 100, "-----BEGIN CERTIFICATE REQUEST-----\n" + "A" * 64, "x" * 9000, "x"]
)
async def test_requests_that_are_none(world: World, request_: str) -> None:
    key_id = await world.redeem("gpu-4")
    assert await world.refusal(key_id, request_) == "INVALID_ARGUMENT"


async def test_a_mesh_without_an_authority_gives_none(world: World) -> None:
    key_id = await world.redeem("gpu-5")
    (world.ca_dir / "ca-key.pem").unlink()
    assert await world.refusal(key_id) == "FAILED_PRECONDITION"


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


async def test_the_node_keeps_its_files_and_renews_them(world: World, tmp_path: Path) -> None:
    key_id = await world.redeem("gpu-6")
    folder, clock = tmp_path / "tls", Clock()

    def node(node_id: str = "gpu-6") -> NodeCertificate:
        return NodeCertificate(world.certificates, as_caller(key_id), node_id, folder, clock)

    def serial() -> str:
        return read((folder / tls.CERTIFICATE_FILE).read_bytes()).serial

    await node().ensure()
    first, key = serial(), (folder / tls.KEY_FILE).read_bytes()
    TlsFolder(folder).server_context()
    await node().ensure()
    assert serial() == first
    clock.now += LEAF_LIFE * 0.6
    await node().ensure()
    assert serial() == first
    clock.now += LEAF_LIFE * 0.1
    await node().ensure()
    assert serial() != first
    assert (folder / tls.KEY_FILE).read_bytes() != key
    # A new authority is trusted from the next renewal on.
    other = renew_authority(world.ca_dir)
    clock.now += LEAF_LIFE
    await node().ensure()
    assert (folder / tls.CA_FILE).read_bytes() == other
    TlsFolder(folder).server_context()
    # What is there is somebody else's.
    with pytest.raises(SystemExit, match="gpu-7"):
        await node("gpu-7").ensure()
    for broken in (b"", b"x"):
        (folder / "..data" / tls.CERTIFICATE_FILE).write_bytes(broken)
        await node().ensure()
        assert read((folder / tls.CERTIFICATE_FILE).read_bytes()).name == "node/gpu-6"


async def test_a_node_that_is_refused_says_so_and_ends(world: World, tmp_path: Path) -> None:
    (world.ca_dir / "ca-key.pem").unlink()
    key_id = await world.redeem("gpu-8")
    node = NodeCertificate(world.certificates, as_caller(key_id), "gpu-8", tmp_path / "tls")
    with pytest.raises(SystemExit, match="no authority"):
        await node.ensure()
