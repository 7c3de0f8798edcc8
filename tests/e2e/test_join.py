"""Who gets into the mesh, who does not, and how nodes work, drain and leave."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import httpx
import pytest

from e2e.fleet import Fleet, free_port
from e2e.mesh import Mesh
from infermesh.auth.v1 import join_token_service_pb2, join_token_service_pb2_grpc
from infermesh.inference.v1 import identity_service_pb2, identity_service_pb2_grpc
from infermesh.registry.v1 import node_service_pb2 as pb
from infermesh.registry.v1 import node_service_pb2_grpc, resources_pb2
from services.cli import models

MODEL = "join"
GGUF = models.default_folder() / "smollm2-135m.gguf"


@pytest.fixture(scope="module", autouse=True)
def node(fleet: Fleet) -> None:
    (url,) = fleet.engines(
        1, MODEL, "--decode-rate", "50", "--slots", "8", "--answer-tokens", "200"
    )
    fleet.join({"join-1": ("--url", url)}, ENGINE_SLOTS="8")


@pytest.fixture
def http(mesh: Mesh) -> Iterator[httpx.Client]:
    with mesh.http() as http:
        yield http


def audited(mesh: Mesh) -> list[dict[str, object]]:
    lines = (mesh.state_dir / "logs" / "auth.log").read_text().splitlines()
    return [json.loads(line) for line in lines if "a join was refused" in line]


def chat(http: httpx.Client, model: str = MODEL, tokens: int = 3) -> httpx.Response:
    messages = [{"role": "user", "content": "Hi"}]
    return http.post(
        "/v1/chat/completions", json={"model": model, "messages": messages, "max_tokens": tokens}
    )


def test_tokens_that_are_no_good_are_refused_and_audited(mesh: Mesh, fleet: Fleet) -> None:
    spent, revoked = fleet.token("--uses", "1"), fleet.token()
    redeem(mesh, spent, "join-other")
    listed = fleet.command("nodes", "token", "list").stdout
    assert "used up" in listed
    with mesh.http() as http:
        tokens = http.get("/mesh/v1/join-tokens").raise_for_status().json()["tokens"]
        mine = next(t for t in tokens if revoked.startswith(t["prefix"]))
    fleet.command("nodes", "token", "revoke", mine["token_id"])

    before = len(audited(mesh))
    bad = {"join-spent": spent, "join-revoked": revoked, "join-made-up": "im-" + "a" * 43}
    processes = {
        name: fleet.node(name, "--engine", "sim", "--url", "http://127.0.0.1:9", token=token)
        for name, token in bad.items()
    }
    for name, process in processes.items():
        assert process.wait(60) == 1, fleet.outputs(name)
        assert "refuses the join token" in fleet.outputs(name)
    mesh.wait("audit", lambda: len(audited(mesh)) == before + len(bad))
    records = audited(mesh)[before:]
    assert all(record["audit"] and record["reason"] for record in records)
    presented = {str(record["who"]).rstrip("…") for record in records if "who" in record}
    assert presented == {revoked[:7], bad["join-made-up"][:7]}
    # What a token that was let in is not good for is written down under its id.
    assert [r["node_id"] for r in records if "by_key_id" in r] == ["join-spent"]
    assert not {"join-spent", "join-revoked", "join-made-up"} & mesh.ready_nodes()


def redeem(mesh: Mesh, token: str, node_id: str) -> str:
    """Exchanges a token for a node's key, as the node does."""
    with grpc.insecure_channel(mesh.address) as channel:
        stub = join_token_service_pb2_grpc.JoinTokenServiceStub(channel)
        request = join_token_service_pb2.RedeemJoinTokenRequest(node_id=node_id)
        return stub.RedeemJoinToken(
            request, metadata=[("authorization", f"Bearer {token}")], timeout=10
        ).secret


def test_a_join_without_a_token_is_refused_and_audited(mesh: Mesh, fleet: Fleet) -> None:
    before = len(audited(mesh))
    user = fleet.command("keys", "create", "join-user").stdout.strip()
    token = fleet.token()
    for key in (None, user, token):
        with Liar(mesh, "join-nobody", key) as liar:
            refused = liar.join()
        wanted = grpc.StatusCode.PERMISSION_DENIED if key else grpc.StatusCode.UNAUTHENTICATED
        assert refused == wanted
    mesh.wait("audit", lambda: len(audited(mesh)) == before + 3)


class Liar(identity_service_pb2_grpc.IdentityServiceServicer):
    """A node that says what it likes; nothing but its name and nonce is behind its address."""

    def __init__(self, mesh: Mesh, node_id: str, key: str | None) -> None:
        self._mesh = mesh
        self._node_id = node_id
        self._metadata = [("authorization", f"Bearer {key}")] if key else []
        self._nonce = b""
        self._messages: list[pb.AttachNodeRequest] = []
        self._says = threading.Condition()
        self._is_over = False
        self._channel = grpc.insecure_channel(mesh.address)
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        identity_service_pb2_grpc.add_IdentityServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{free_port()}"
        self._server.add_insecure_port(self.address)

    def __enter__(self) -> "Liar":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._says:
            self._is_over = True
            self._says.notify()
        self._channel.close()
        self._server.stop(None).wait(5)

    def Identify(self, request, context):  # noqa: N802
        # The question may overtake the nonce.
        for _ in range(100):
            if self._nonce:
                break
            time.sleep(0.02)
        return identity_service_pb2.IdentifyResponse(node_id=self._node_id, nonce=self._nonce)

    def say(self, message: pb.AttachNodeRequest) -> None:
        with self._says:
            self._messages.append(message)
            self._says.notify()

    def report(self, **load: object) -> None:
        self.say(
            pb.AttachNodeRequest(
                report=pb.NodeReport(engine_up=True, load=resources_pb2.NodeLoad(**load))
            )
        )

    def is_ready(self, **load: object) -> bool:
        """Reports, as nodes do again and again, and says whether the mesh has it."""
        self.report(running=0, **load)
        return self._node_id in self._mesh.ready_nodes()

    def _words(self) -> Iterator[pb.AttachNodeRequest]:
        while True:
            with self._says:
                self._says.wait_for(lambda: self._messages or self._is_over)
                if not self._messages:
                    return
                message = self._messages.pop(0)
            yield message

    def join(self, address: str = "", model: str = "join-lies") -> grpc.StatusCode | None:
        """Joins, and returns why that failed; None where it did not."""
        served = resources_pb2.ServedModel(
            name=model, capabilities=[resources_pb2.CAPABILITY_CHAT], context_length=2048
        )
        self.say(
            pb.AttachNodeRequest(
                join=pb.JoinNode(
                    node_id=self._node_id,
                    address=address or self.address,
                    engine="vllm",
                    models=[served],
                )
            )
        )
        stub = node_service_pb2_grpc.NodeServiceStub(self._channel)
        self._call = stub.AttachNode(self._words(), metadata=self._metadata)
        try:
            for response in self._call:
                if response.WhichOneof("message") == "challenge":
                    self._nonce = response.challenge.nonce
                elif response.WhichOneof("message") == "joined":
                    return None
        except grpc.RpcError as error:
            return error.code()
        raise AssertionError("the registry ended the stream")

    def ends_with(self) -> grpc.StatusCode:
        """Waits until the registry ends the stream."""
        return self._call.code()


def test_a_node_with_anothers_address_is_refused(mesh: Mesh, fleet: Fleet) -> None:
    key = redeem(mesh, fleet.token(), "join-liar")
    with mesh.http() as http:
        node = http.get("/mesh/v1/nodes/node-1").raise_for_status().json()
    base = mesh.port - 80
    for number, (address, wanted) in enumerate(
        (
            (node["address"], grpc.StatusCode.INVALID_ARGUMENT),
            # Auth, PostgreSQL, Envoy itself.
            (f"127.0.0.1:{base + 1}", grpc.StatusCode.FAILED_PRECONDITION),
            (f"127.0.0.1:{base + 10}", grpc.StatusCode.UNAVAILABLE),
            (mesh.address, grpc.StatusCode.FAILED_PRECONDITION),
            # Nobody.
            (f"127.0.0.1:{free_port()}", grpc.StatusCode.UNAVAILABLE),
        )
    ):
        with Liar(mesh, f"join-liar-{number}", key) as liar:
            assert liar.join(address) == wanted, address
    assert not any(each.startswith("join-liar") for each in mesh.ready_nodes())


@pytest.mark.parametrize("load", [{"kv_use": float("nan")}, {"running": -1}, {"slots": -5}])
def test_a_node_that_reports_nonsense_is_put_out(
    mesh: Mesh, fleet: Fleet, http: httpx.Client, load: dict[str, float]
) -> None:
    node_id = f"join-odd-{next(iter(load))}"
    with Liar(mesh, node_id, redeem(mesh, fleet.token(), node_id)) as liar:
        assert liar.join() is None
        mesh.wait("join", lambda: liar.is_ready(slots=4))
        liar.report(**load)
        assert liar.ends_with() == grpc.StatusCode.INVALID_ARGUMENT
    # Sooner than its lease runs out.
    mesh.wait("it is out", lambda: node_id not in mesh.ready_nodes(), 3)
    http.delete(f"/mesh/v1/nodes/{node_id}").raise_for_status()


def test_a_node_that_does_not_serve_what_it_says_costs_nobody_an_answer(
    mesh: Mesh, fleet: Fleet, http: httpx.Client
) -> None:
    with Liar(mesh, "join-empty", redeem(mesh, fleet.token(), "join-empty")) as liar:
        assert liar.join(model=MODEL) is None
        mesh.wait("join", lambda: liar.is_ready(slots=100))
        answers = []
        for _ in range(30):
            liar.report(running=0, slots=100)
            answers.append(chat(http))
    print({(a.status_code, a.headers.get("x-mesh-node")) for a in answers})
    assert {a.status_code for a in answers} == {200}
    mesh.wait("deleted", lambda: http.delete("/mesh/v1/nodes/join-empty").status_code == 200)


def test_a_drained_node_ends_its_stream_and_gets_no_more(
    mesh: Mesh, fleet: Fleet, http: httpx.Client
) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body | {"max_tokens": 200}) as flowing:
        lines = flowing.iter_lines()
        next(lines)
        assert "draining" in fleet.command("nodes", "drain", "join-1").stdout
        mesh.wait("refusal", lambda: chat(http).status_code == 503)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    fleet.command("nodes", "resume", "join-1")
    mesh.wait("resume", lambda: chat(http).status_code == 200)


def test_a_benchmark_by_the_command_line(fleet: Fleet) -> None:
    said = fleet.command(
        *("nodes", "benchmark", "join-1", MODEL, "--requests", "12", "--output-tokens", "5")
    ).stdout
    for word in ("requests/s", "tokens/s", "p50", "p95", "p99", "first token"):
        assert word in said, said


def test_a_node_runs_its_engine_and_changes_its_model(
    mesh: Mesh, fleet: Fleet, http: httpx.Client
) -> None:
    assert GGUF.exists()
    fleet.join({"join-own": ("--model-file", str(GGUF), "--engine-arg=--ctx", "--engine-arg=2048")})
    node = http.get("/mesh/v1/nodes/join-own").json()
    own_name = node["models"][0]["name"]
    print(f"serves {own_name}")
    fleet.command("nodes", "load", "join-own", "join-second", "--source", str(GGUF))
    mesh.wait("load", lambda: chat(http, "join-second").status_code == 200)
    bad = fleet.command(
        *("nodes", "load", "join-own", "x", "--source", str(Path("/no/such.gguf"))), check=False
    )
    assert bad.returncode == 1
    assert bad.stderr.strip()
    mesh.wait("the model from before", lambda: chat(http, "join-second").status_code == 200)
    fleet.command("nodes", "unload", "join-own", "join-second")
    mesh.wait("unload", lambda: chat(http, "join-second").status_code == 503)
    assert fleet.stop("join-own") == 0
