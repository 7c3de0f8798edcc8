"""The whole mesh over TLS: who gets in, who does not, and certificates renewed under load."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import httpx
import openai
import pytest

from e2e.mesh import CHAT, EMBED, REPOSITORY, Mesh
from infermesh.auth.v1 import certificate_service_pb2, certificate_service_pb2_grpc
from infermesh.registry.v1 import model_service_pb2, model_service_pb2_grpc
from services.cli.certs import Certs
from services.kit import certificates, tls
from services.kit.certificate_reading import read
from services.kit.certificates import Authority
from services.kit.tls_files import write_folder
from support import free_port
from tls_world import check, refused

PORT, BASE_PORT = 23480, 23400
MODEL = "tls-sim"
SERVICES = {"auth": 1, "registry": 2, "routing": 3, "embeddings": 4, "metrics": 5, "jobs": 6}


@dataclass
class TlsMesh(Mesh):
    """A mesh that speaks TLS."""

    port: int = PORT

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def certs(self) -> Certs:
        return Certs(self.state_dir / "tls")

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.certs.ca_file)

    def openai(self, key: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=key or self.admin_key,
            max_retries=0,
            timeout=60,
            http_client=httpx.Client(verify=self.trust),
        )

    def http(self, key: str | None = None) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {key or self.admin_key}"},
            timeout=60,
            verify=self.trust,
        )

    def channel(self) -> grpc.Channel:
        credentials = grpc.ssl_channel_credentials(self.certs.ca_file.read_bytes())
        return grpc.secure_channel(self.address, credentials)

    def command(self, *words: str, **environment: str) -> list[str]:
        return [sys.executable, "-m", "services.cli", *words]

    def run(self, *words: str) -> str:
        """Runs a command beside the mesh; returns what it says."""
        done = subprocess.run(
            self.command(*words),
            cwd=REPOSITORY,
            env=os.environ
            | {
                "INFERMESH_CA": str(self.certs.ca_file),
                "INFERMESH_ADDRESS": self.url,
                "INFERMESH_KEY": self.admin_key,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def issue(self, name: str, folder: Path, life: timedelta, now: datetime | None = None) -> Path:
        """Makes files with a certificate of the mesh's authority."""
        ca = (self.certs.ca_dir / "ca.pem").read_bytes()
        authority = Authority(ca, (self.certs.ca_dir / "ca-key.pem").read_bytes())
        leaf = authority.issue(name, life, now)
        files = {"ca.pem": ca, "cert.pem": leaf.certificate, "key.pem": leaf.key}
        write_folder(folder, files)
        return folder

    def serial(self, port: int, own: Path | None = None) -> str:
        """Returns the serial number of the certificate that is shown at a port."""
        context = ssl.create_default_context(cafile=self.certs.ca_file)
        context.check_hostname = False
        context.set_alpn_protocols(["h2"])
        if own is not None:
            context.load_cert_chain(own / "cert.pem", own / "key.pem")
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            context.wrap_socket(plain, server_hostname="mesh") as secure,
        ):
            return f"{int(secure.getpeercert()['serialNumber'], 16):x}"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsMesh]:
    state_dir = tmp_path_factory.mktemp("tls") / "state"
    output = state_dir.parent / "up.out"
    words = ("up", "--tls", "--nodes", "1", "--state-dir", str(state_dir))
    ports = ("--port", str(PORT), "--base-port", str(BASE_PORT))
    with output.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", *words, *ports],
            cwd=REPOSITORY,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    mesh = TlsMesh(process, state_dir, output)
    try:
        mesh.wait("start", lambda: process.poll() is None and "Bearer" in output.read_text(), 120)
        mesh.wait("nodes", lambda: mesh.ready_nodes() >= {"node-1", "node-embed"}, 60)
        yield mesh
    except AssertionError:
        print(output.read_text())
        raise
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()


@pytest.fixture(scope="module")
def joined(mesh: TlsMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A node that joined with a token, over a simulated engine; yields its TLS folder."""
    folder = tmp_path_factory.mktemp("joined")
    engine_port, port = free_port(), free_port()
    token = mesh.run("nodes", "token", "--uses", "1").splitlines()[0]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("INFERMESH_")}
    engine = [sys.executable, "-m", "services.inference.simulator"]
    node = mesh.command("node", "--join", mesh.url, "--ca", str(mesh.certs.ca_file))
    node += ["--engine", "sim", "--url", f"http://127.0.0.1:{engine_port}", "--id", "far-1"]
    node += ["--listen", f"127.0.0.1:{port}", "--state-dir", str(folder)]
    output = folder / "node.out"
    with output.open("wb") as out:
        processes = [
            subprocess.Popen(words, cwd=REPOSITORY, env=env, stdout=out, stderr=out)
            for words, env in (
                ([*engine, "--port", str(engine_port), "--model", MODEL], environment),
                (node, environment | {"INFERMESH_NODE_TOKEN": token}),
            )
        ]
    try:
        mesh.wait("join", lambda: "far-1" in mesh.called_nodes(), 60)
        yield folder / "nodes" / "far-1" / "tls"
    except AssertionError:
        print(output.read_text())
        raise
    finally:
        for process in processes:
            process.terminate()
            process.wait(60)


def ask(client: openai.OpenAI, model: str) -> str:
    messages = [{"role": "user", "content": "Hi"}]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=4)
    return answer.choices[0].message.content or ""


def test_the_openai_sdk_comes_over_https(mesh: TlsMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    with mesh.openai() as client:
        assert ask(client, CHAT)
        # Auth asks routing over TLS too; where it cannot, calls go on without a decision.
        chosen = client.chat.completions.with_raw_response.create(
            model=CHAT,
            messages=[{"role": "user", "content": "Hi"}],
            max_tokens=1,
            extra_headers={"x-debug-mode": "true"},
        )
        assert "x-mesh-decision" in chosen.headers
        # By way of Envoy's internal listener, which speaks TLS too.
        assert len(client.embeddings.create(model=EMBED, input="Hi").data[0].embedding) == 384
    untrusting = openai.OpenAI(base_url=f"{mesh.url}/v1", api_key=mesh.admin_key, max_retries=0)
    with untrusting, pytest.raises(openai.APIConnectionError):
        ask(untrusting, CHAT)
    # As a program is told that cannot be changed.
    monkeypatch.setenv("SSL_CERT_FILE", str(mesh.certs.ca_file))
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key=mesh.admin_key) as trusting:
        assert ask(trusting, CHAT)


def test_grpc_and_the_command_line_come_over_tls(mesh: TlsMesh) -> None:
    with mesh.channel() as channel:
        models = model_service_pb2_grpc.ModelServiceStub(channel).ListModels(
            model_service_pb2.ListModelsRequest(),
            metadata=[("authorization", f"Bearer {mesh.admin_key}")],
            timeout=10,
        )
    assert {model.name for model in models.models} >= {CHAT, EMBED}
    said = mesh.run("status")
    for part in (*SERVICES, "node-1"):
        assert f"{part} " in said
    assert "not serving" not in said


def test_plain_text_and_old_tls_are_refused_at_the_front(mesh: TlsMesh) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{PORT}/health", timeout=5)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        assert handshake(mesh, version) == version.name.replace("_", ".")
    with pytest.raises(ssl.SSLError):
        handshake(mesh, ssl.TLSVersion.TLSv1_1)


def handshake(mesh: TlsMesh, version: ssl.TLSVersion) -> str | None:
    context = mesh.trust
    if version < ssl.TLSVersion.TLSv1_2:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", PORT), 5) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        return secure.version()


def test_no_service_is_reached_without_a_certificate_nor_with_a_nodes(
    mesh: TlsMesh, joined: Path, tmp_path: Path
) -> None:
    supervisor = mesh.certs.folder("service/supervisor")
    expired = mesh.issue(
        tls.ENVOY, tmp_path / "old", timedelta(hours=24), datetime.now(UTC) - timedelta(days=2)
    )

    async def look() -> None:
        for name, offset in SERVICES.items():
            address = f"127.0.0.1:{BASE_PORT + offset}"
            for folder in (None, joined, expired):
                assert await refused(address, folder, tls.service(name)), (name, folder)
            await check(address, supervisor, tls.service(name))
        node = f"127.0.0.1:{BASE_PORT + 21}"
        for folder in (None, joined, expired):
            assert await refused(node, folder, tls.node("node-1"))
        await check(node, supervisor, tls.node("node-1"))
        internal = f"127.0.0.1:{BASE_PORT + 9}"
        for folder in (None, joined, supervisor):
            assert await refused(internal, folder, tls.ENVOY)

    asyncio.run(look())


def test_a_node_gets_a_certificate_for_its_token_and_answers(mesh: TlsMesh, joined: Path) -> None:
    shown = read((joined / "cert.pem").read_bytes())
    assert shown.name == "node/far-1"
    assert timedelta(hours=23) < shown.end - datetime.now(UTC) <= timedelta(hours=24)
    with mesh.openai() as client:
        assert ask(client, MODEL)


@pytest.mark.parametrize("key_file", ["admin.key", "node.key"])
def test_who_is_no_one_node_gets_no_certificate(mesh: TlsMesh, key_file: str) -> None:
    key = (mesh.state_dir / key_file).read_text().strip()
    request = certificates.make_request(certificates.make_key(), "node-1").decode()
    wanted = {
        "admin.key": grpc.StatusCode.PERMISSION_DENIED,
        # The key of all nodes that `up` starts.
        "node.key": grpc.StatusCode.FAILED_PRECONDITION,
    }
    with mesh.channel() as channel, pytest.raises(grpc.RpcError) as refusal:
        certificate_service_pb2_grpc.CertificateServiceStub(channel).IssueNodeCertificate(
            certificate_service_pb2.IssueNodeCertificateRequest(signing_request=request),
            metadata=[("authorization", f"Bearer {key}")],
            timeout=10,
        )
    assert refusal.value.code() is wanted[key_file]


def test_renewal_costs_no_call(mesh: TlsMesh, joined: Path) -> None:
    supervisor = mesh.certs.folder("service/supervisor")
    ports = [PORT, *(BASE_PORT + offset for offset in (*SERVICES.values(), 21))]

    def serials() -> dict[int, str]:
        return {port: mesh.serial(port, supervisor) for port in ports}

    stop = threading.Event()
    outcomes: list[str] = []

    def load() -> None:
        # New connections and old ones.
        with mesh.openai() as kept:
            while not stop.is_set():
                try:
                    ask(kept, MODEL)
                    with mesh.openai() as fresh:
                        ask(fresh, MODEL)
                    kept.embeddings.create(model=EMBED, input=str(time.monotonic_ns()))
                    outcomes.append("ok")
                except openai.OpenAIError as error:
                    outcomes.append(repr(error))
                time.sleep(0.01)

    before = serials()
    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            time.sleep(2)
            mesh.run("certs", "renew", "--all", "--dir", str(mesh.certs.path))
        mesh.wait("renewal", lambda: not before.items() & serials().items(), 40)
        time.sleep(3)
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    print(f"{len(outcomes)} rounds of calls, {len(outcomes) - outcomes.count('ok')} failed")
    assert set(outcomes) == {"ok"}
    # Of each thread some before, some while and some after it was renewed, on a slow machine too.
    assert len(outcomes) > 12
    shown = {
        leaf.name: leaf.shown.serial
        for leaf in mesh.certs.leaves()
        if leaf.name in ("front", "service/auth")
    }
    now = serials()
    assert shown == {"front": now[PORT], "service/auth": now[BASE_PORT + 1]}
    assert mesh.ready_nodes() >= {"node-1", "node-embed", "far-1"}


def test_a_node_whose_certificate_expired_is_not_called_and_comes_back(mesh: TlsMesh) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=2)
    mesh.issue("node/node-1", mesh.certs.folder("node/node-1"), timedelta(hours=24), long_ago)
    time.sleep(1.5)
    mesh.kill("node-1")
    with mesh.openai() as client:

        def is_away() -> bool:
            try:
                ask(client, CHAT)
            except openai.InternalServerError as error:
                return error.status_code == 503
            return False

        mesh.wait("node-1 is away", is_away)
        time.sleep(3)  # it has started again by now
        assert is_away()
        mesh.run("certs", "renew", "--dir", str(mesh.certs.path))
        mesh.wait("node-1 is back", lambda: ask(client, CHAT), 60)
