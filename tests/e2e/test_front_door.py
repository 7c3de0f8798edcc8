"""What the front door says of itself, to whom it listens, and how long."""

import json
import os
import signal
import socket
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import psutil
import pytest

from e2e.admin_socket import ask, counter
from e2e.fleet import Fleet
from e2e.mesh import CHAT, Mesh
from infermesh.auth.v1 import audit_service_pb2 as audit_pb
from infermesh.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

BODY = {"model": CHAT, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
HYGIENE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}


def exchange(mesh: Mesh, data: bytes, wait_s: float = 20.0) -> bytes:
    with socket.create_connection(("127.0.0.1", mesh.port), timeout=wait_s) as connection:
        connection.sendall(data)
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
                connection.settimeout(0.3)
        except (TimeoutError, ConnectionError):
            pass  # what came until then is what counts
        return received


def assert_hygiene(headers: httpx.Headers) -> None:
    assert {name: headers.get(name) for name in HYGIENE} == HYGIENE
    assert "server" not in headers
    assert "via" not in headers
    assert "strict-transport-security" not in headers  # this mesh speaks no TLS
    assert [name for name in headers if name.startswith("x-envoy-")] == []
    assert "x-mesh-error" not in headers


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("GET", "/v1/models", True, 200),
        ("GET", "/mesh/v1/keys", True, 200),
        ("POST", "/v1/chat/completions", True, 200),
        ("GET", "/health", False, 200),
        ("GET", "/v1/models", False, 401),
        ("GET", "/v1/nothing", True, 404),
        ("DELETE", "/mesh/v1/keys/key_none", True, 404),
        ("OPTIONS", "/v1/models", False, 401),
    ],
)
def test_every_answer_has_the_headers(
    mesh: Mesh, method: str, path: str, key: bool, status: int
) -> None:
    headers = {"authorization": f"Bearer {mesh.admin_key}"} if key else {}
    body = BODY if method == "POST" else None
    reply = httpx.request(method, mesh.url + path, headers=headers, json=body, timeout=30)
    assert reply.status_code == status
    assert_hygiene(reply.headers)
    assert reply.headers["x-request-id"]


def test_streams_and_grpc_have_them_too(mesh: Mesh) -> None:
    with (
        mesh.http() as http,
        http.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as reply,
    ):
        assert_hygiene(reply.headers)
        reply.read()
    with grpc.insecure_channel(mesh.address) as channel:
        stub = metrics_service_pb2_grpc.MetricsServiceStub(channel)
        call = stub.GetMeshHealth.with_call(
            metrics_service_pb2.GetMeshHealthRequest(),
            metadata=(("authorization", f"Bearer {mesh.admin_key}"),),
        )[1]
        said = dict(call.initial_metadata())
        assert said["x-content-type-options"] == "nosniff"
        assert not [name for name in said if name.startswith(("x-envoy-", "server"))]


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n"
        + b"".join(b"x-%d: 1\r\n" % i for i in range(120))
        + b"\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GE T / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx_a: 1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    ],
)
def test_what_never_becomes_a_call_is_told_so_in_the_same_way(mesh: Mesh, request_: bytes) -> None:
    head, _, body = exchange(mesh, request_).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert 400 <= int(lines[0].split(" ")[1]) < 500
    assert_hygiene(httpx.Headers([tuple(line.split(": ", 1)) for line in lines[1:]]))
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]


CREDENTIALS = [b"", b"authorization: Bearer im-" + b"x" * 43 + b"\r\n"]


@pytest.mark.parametrize("credential", CREDENTIALS, ids=["none", "a bad one"])
@pytest.mark.parametrize(
    "framing", [b"content-length: 15000000\r\n", b"transfer-encoding: chunked\r\n"]
)
def test_a_stranger_is_answered_before_the_body_comes(
    mesh: Mesh, credential: bytes, framing: bytes
) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    received = exchange(mesh, head + credential + framing + b"\r\n")
    assert received.startswith(b"HTTP/1.1 401 ")
    assert b'"code":"invalid_api_key"' in received
    # The same call with a key is asked for its body first.
    known = b"authorization: Bearer " + mesh.admin_key.encode() + b"\r\n"
    assert exchange(mesh, head + known + framing + b"\r\n", 1) == b""


def test_a_stranger_who_speaks_grpc_is_answered_in_grpc(mesh: Mesh) -> None:
    with grpc.insecure_channel(mesh.address) as channel:
        requests = iter(lambda: time.sleep(60), None)  # a body that does not come
        call = channel.stream_unary("/infermesh.inference.v1.InferenceService/Chat")
        with pytest.raises(grpc.RpcError) as caught:
            call(requests, timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "grpc-status-details-bin" in dict(caught.value.trailing_metadata())


def test_the_early_refusal_is_an_audit_event(mesh: Mesh) -> None:
    head = b"POST /v1/early-refusal HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n"
    assert exchange(mesh, head).startswith(b"HTTP/1.1 401 ")

    def seen() -> bool:
        with mesh.http() as http:
            reply = http.get("/mesh/v1/audit/events", params={"page_size": 200})
        kind = audit_pb.AuditKind.Name(audit_pb.AUDIT_KIND_DENIAL)
        return any(
            event["kind"] == kind and event["rpc"] == "/v1/early-refusal"
            for event in reply.raise_for_status().json()["events"]
        )

    mesh.wait("the event", seen)


def test_browsers_are_let_call_by_nobody_unless_it_is_said(mesh: Mesh) -> None:
    """`tests/security/test_cors.py` has a mesh of which it is said."""
    headers = {"origin": "https://app.example.com", "access-control-request-method": "POST"}
    reply = httpx.options(f"{mesh.url}/v1/chat/completions", headers=headers)
    assert reply.status_code == 401
    with mesh.http() as http:
        reply = http.get("/v1/models", headers={"origin": "https://app.example.com"})
    assert reply.status_code == 200
    assert not [name for name in reply.headers if name.startswith("access-control-")]


def test_a_key_of_one_web_page_is_refused_from_another(mesh: Mesh) -> None:
    page = "https://app.example.com"
    rules = {"cors_origins": [page]}
    with mesh.http() as http:
        made = http.post("/mesh/v1/keys", json={"display_name": "page", "rules": rules}).json()
        with mesh.http(made["secret"]) as user:
            for path in ("/v1/models", "/v1/chat/completions"):
                send = (
                    user.get
                    if path == "/v1/models"
                    else lambda p, **k: user.post(p, json=BODY, **k)
                )
                assert send(path).status_code == 200
                assert send(path, headers={"origin": page}).status_code == 200
                reply = send(path, headers={"origin": "https://evil.example.com"})
                assert (reply.status_code, reply.json()["error"]["code"]) == (
                    403,
                    "permission_denied",
                )
        http.delete(f"/mesh/v1/keys/{made['key']['key_id']}")


def test_the_admin_interface_is_a_socket_that_others_cannot_open(mesh: Mesh) -> None:
    path = mesh.state_dir / "run" / "envoy-admin.sock"
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert "infermesh-front" in ask(mesh, "/server_info")
    envoy = mesh.part("envoy")
    ports = {c.laddr.port for c in envoy.net_connections() if c.status == psutil.CONN_LISTEN}
    assert len(ports) == 2  # the front door and the internal listener
    for port in ports:
        for page in ("/server_info", "/stats", "/config_dump", "/clusters", "/quitquitquit"):
            for prior in (False, True):
                with httpx.Client(http1=not prior, timeout=5) as http:
                    try:
                        reply = http.get(f"http://127.0.0.1:{port}{page}")
                    except httpx.HTTPError:
                        continue  # the internal listener speaks HTTP/2 alone
                    assert reply.status_code in (401, 404), (port, page)
                    assert "envoy" not in reply.text.lower()


def test_a_full_circuit_breaker_is_a_clear_503(mesh: Mesh) -> None:
    # Two at a time, and none that answers: the third is turned away at once, in both dialects.
    ask(mesh, "/runtime_modify?circuit_breakers.metrics.default.max_requests=2", "POST")
    metrics = mesh.part("metrics")
    waiting: list[threading.Thread] = []
    metrics.suspend()
    try:
        headers = {"authorization": f"Bearer {mesh.admin_key}"}

        def get() -> httpx.Response:
            return httpx.get(f"{mesh.url}/mesh/v1/health", headers=headers, timeout=30)

        waiting = [threading.Thread(target=get) for _ in range(2)]
        for thread in waiting:
            thread.start()
        mesh.wait("two that wait", lambda: counter(mesh, "cluster.metrics.upstream_rq_active") >= 2)
        started = time.monotonic()
        reply = get()
        # It did not wait as the two do, whose calls are under way for as long as they may be.
        assert time.monotonic() - started < 5
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "service_unavailable")
        with grpc.insecure_channel(mesh.address) as channel:
            stub = metrics_service_pb2_grpc.MetricsServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetMeshHealth(
                    metrics_service_pb2.GetMeshHealthRequest(),
                    metadata=(("authorization", f"Bearer {mesh.admin_key}"),),
                    timeout=20,
                )
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "A part of the mesh" in caught.value.details()
    finally:
        metrics.resume()
        ask(mesh, "/runtime_modify?circuit_breakers.metrics.default.max_requests=", "POST")
        for thread in waiting:
            thread.join()
    mesh.wait("health", lambda: get().status_code == 200)


def test_a_node_that_takes_no_connections_is_ejected_and_comes_back(
    mesh: Mesh, fleet: Fleet
) -> None:
    name = "cluster.inference.outlier_detection.ejections_enforced_total"
    active = "cluster.inference.outlier_detection.ejections_active"
    model = "outlier-model"
    (engine, *_) = fleet.engines(1, model)
    fleet.join({"outlier-1": ("--engine", "sim", "--url", engine)})
    body = {**BODY, "model": model}
    with mesh.http() as http:
        mesh.wait("it", lambda: http.post("/v1/chat/completions", json=body).status_code == 200)
        before = counter(mesh, name)
        process = fleet._nodes["outlier-1"]
        children = psutil.Process(process.pid).children(recursive=True)
        # Frozen, its connections are found dead by pings; new ones fail then, call after call.
        for each in (psutil.Process(process.pid), *children):
            os.kill(each.pid, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(8) as pool:
                deadline = time.monotonic() + 50
                while counter(mesh, name) == before and time.monotonic() < deadline:
                    list(pool.map(lambda _: _status(mesh, body), range(8)))
            assert counter(mesh, name) > before
        finally:
            for each in (psutil.Process(process.pid), *children):
                os.kill(each.pid, signal.SIGCONT)
        mesh.wait("it is taken back", lambda: counter(mesh, active) == 0, 30)
        mesh.wait("it", lambda: http.post("/v1/chat/completions", json=body).status_code == 200)


def _status(mesh: Mesh, body: object) -> int:
    headers = {"authorization": f"Bearer {mesh.admin_key}"}
    url = f"{mesh.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=headers, timeout=60).status_code
