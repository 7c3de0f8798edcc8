"""The audit log of a whole mesh: what was done where, by whom, how it ended and what it changed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import grpc
import httpx
import pytest
from google.protobuf import message_factory

from e2e.mesh import CHAT, Mesh, start_mesh
from infermesh.access.v1 import access_pb2
from infermesh.auth.v1 import audit_service_pb2 as pb
from infermesh.auth.v1 import audit_service_pb2_grpc
from services.auth import contracts
from services.cli.stack import REPOSITORY

PORT, BASE_PORT = 23700, 23710
WORDS = "The launch code of the silo is 0000, and this is long enough to be hashed."


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh of this file's own, whose log tells the form of inference requests."""
    state_dir = tmp_path_factory.mktemp("audited") / "state"
    os.environ["INFERMESH_AUDIT_INFERENCE"] = "bodies"
    try:
        mesh = start_mesh(state_dir, PORT, BASE_PORT, "--nodes", "1")
    finally:
        del os.environ["INFERMESH_AUDIT_INFERENCE"]
    try:
        wanted = {"node-1", "node-embed"}
        mesh.wait("nodes", lambda: mesh.ready_nodes() >= wanted, 60)
        yield mesh
    finally:
        mesh.process.send_signal(signal.SIGINT)
        mesh.process.wait(60)


@pytest.fixture
def http(audited: Mesh) -> Iterator[httpx.Client]:
    with audited.http() as client:
        yield client


def events(mesh: Mesh, count: int, **filters: str) -> list[dict[str, str]]:
    """Returns the events, oldest first, once there are so many."""
    query = {"oldest_first": "true", "page_size": "1000", **filters}

    def found() -> list[dict[str, str]]:
        with mesh.http() as client:
            reply = client.get("/mesh/v1/audit/events", params=query).raise_for_status()
        listed: list[dict[str, str]] = reply.json()["events"]
        return listed if len(listed) >= count else []

    listed: list[dict[str, str]] = mesh.wait(f"{count} events of {filters}", found)
    assert len(listed) == count, listed
    return listed


def key(http: httpx.Client, role: str) -> tuple[str, str]:
    body = {"display_name": role, "role": f"ROLE_{role.upper()}"}
    made = http.post("/mesh/v1/keys", json=body).raise_for_status().json()
    return made["key"]["key_id"], made["secret"]


def command(mesh: Mesh, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments, "--address", mesh.address],
        cwd=REPOSITORY,
        env={**os.environ, "INFERMESH_KEY": mesh.admin_key},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_what_is_done_to_each_service_is_told_with_its_outcome(
    audited: Mesh, http: httpx.Client
) -> None:
    admin = {"authorization": f"Bearer {key(http, 'admin')[1]}"}
    key_id, secret = key(http, "operator")
    operator = {"authorization": f"Bearer {secret}"}
    calls = (
        ("POST", "/mesh/v1/nodes/node-1:drain", {}, operator),
        ("POST", "/mesh/v1/nodes/node-1:resume", {}, operator),
        ("POST", "/mesh/v1/nodes/nobody:drain", {}, operator),
        ("PUT", f"/mesh/v1/model-routes/{CHAT}", {"policy": "cost"}, operator),
        ("PUT", f"/mesh/v1/model-routes/{CHAT}", {"policy": "round_robin"}, operator),
        ("DELETE", f"/mesh/v1/model-routes/{CHAT}", None, operator),
    )
    ids = []
    for method, path, body, headers in calls:
        reply = http.request(method, path, json=body, headers=headers)
        assert reply.status_code in (200, 404), reply.text
        ids.append(reply.headers["x-request-id"])
    told = events(audited, len(calls), key_id=key_id, kind="AUDIT_KIND_OUTCOME")
    # Services send by themselves: in the log they stand as they came in.
    by_id = {event["request_id"]: event for event in told}
    drain, resume, missed, first, second, gone = (by_id[request_id] for request_id in ids)
    assert {event["role"] for event in told} == {"operator"}
    assert (drain["resource"], drain["outcome"]) == ("node-1", "OK")
    assert json.loads(drain["before"])["state"] == "NODE_STATE_READY"
    assert json.loads(drain["after"])["state"] == "NODE_STATE_DRAINING"
    assert json.loads(resume["before"])["state"] == "NODE_STATE_DRAINING"
    assert (missed["resource"], missed["outcome"]) == ("nobody", "NOT_FOUND")
    assert (first["before"], json.loads(first["after"])["policy"]) == ("", "cost")
    assert json.loads(second["before"])["policy"] == "cost"
    assert json.loads(gone["before"])["policy"] == "round_robin"
    # Each has its call, from where it came, under the same id.
    passed = events(audited, len(calls), key_id=key_id, kind="AUDIT_KIND_CALL")
    assert [event["request_id"] for event in passed] == ids
    assert {event["source"] for event in passed} == {"127.0.0.1"}

    price = {"price": {"model": CHAT, "input_usd": "0.1", "output_usd": "0.2"}}
    http.put("/mesh/v1/prices", json=price, headers=admin).raise_for_status()
    rpc = "/infermesh.metrics.v1.PriceService/SetPrice"
    [event] = events(audited, 1, rpc=rpc, kind="AUDIT_KIND_OUTCOME")
    assert (event["resource"], event["outcome"], event["role"]) == (CHAT, "OK", "admin")
    assert json.loads(event["after"])["output_usd"] == "0.2"
    verified = command(audited, "audit", "verify")
    assert (verified.returncode, "the chain holds" in verified.stdout) == (0, True), verified
    listed = command(audited, "audit", "list", "--actor", key_id, "--changes", "--since", "1h")
    assert "state: NODE_STATE_READY → NODE_STATE_DRAINING" in listed.stdout, listed


def test_what_a_service_did_before_it_was_killed_is_told(audited: Mesh, http: httpx.Client) -> None:
    key_id, secret = key(http, "operator")
    operator = {"authorization": f"Bearer {secret}"}
    # What is answered is in routing's own file; the next process sends it where this one has not.
    path = f"/mesh/v1/model-routes/{CHAT}"
    reply = http.put(path, json={"policy": "cost"}, headers=operator)
    assert reply.status_code == 200, reply.text
    audited.kill("routing")
    http.delete(path)
    [event] = events(audited, 1, key_id=key_id, kind="AUDIT_KIND_OUTCOME")
    assert event["outcome"] == "OK"
    audited.wait("routing", lambda: http.get("/mesh/v1/policies").status_code == 200)


def test_inference_is_told_by_its_form_and_without_its_words(
    audited: Mesh, http: httpx.Client
) -> None:
    body = {"model": CHAT, "messages": [{"role": "user", "content": WORDS}], "max_tokens": 3}
    reply = http.post("/v1/chat/completions", json=body).raise_for_status()
    request_id = reply.headers["x-request-id"]
    found = events(audited, 2, request_id=request_id, kind="AUDIT_KIND_INFERENCE")
    passed, asked = sorted(found, key=lambda event: event["after"])
    assert (passed["rpc"].rpartition("/")[2], passed["after"]) == ("CreateChatCompletion", "")
    assert asked["source"] == "key_bootstrapnode"
    told = json.loads(asked["after"])
    assert (told["node"], told["operation"]) == ("node-1", "chat")
    assert told["request"]["max_tokens"] == 3
    assert told["request"]["messages"][0]["content"]["chars"] == len(WORDS)
    vectors = {"model": "all-minilm-l6-v2", "input": [WORDS, "short"]}
    reply = http.post("/v1/embeddings", json=vectors).raise_for_status()
    found = events(
        audited, 2, request_id=reply.headers["x-request-id"], kind="AUDIT_KIND_INFERENCE"
    )
    told = json.loads(max(event["after"] for event in found))
    assert (told["node"], told["request"]["input"][1]) == ("embeddings", {"chars": 5})
    export = audited.state_dir / "audit.jsonl"
    assert command(audited, "audit", "export", str(export)).returncode == 0
    assert "launch code" not in export.read_text()


def test_internal_rpcs_are_no_part_of_the_front_door(audited: Mesh) -> None:
    metadata = (("authorization", f"Bearer {audited.admin_key}"),)
    forged = pb.AuditEvent(event_id="0" * 32, kind=pb.AUDIT_KIND_OUTCOME, key_id="key_forged")
    with grpc.insecure_channel(audited.address) as channel:
        request = pb.RecordAuditEventsRequest(events=[forged])
        stub = audit_service_pb2_grpc.AuditServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.RecordAuditEvents(request, metadata=metadata, timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        for service in contracts.services():
            for method in service.methods:
                if not method.GetOptions().Extensions[access_pb2.internal]:
                    continue
                call = channel.unary_unary(
                    f"/{service.full_name}/{method.name}",
                    request_serializer=lambda message: message.SerializeToString(),
                )
                empty = message_factory.GetMessageClass(method.input_type)()
                with pytest.raises(grpc.RpcError) as caught:
                    call(empty, metadata=metadata, timeout=10)
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND, method.full_name
    with audited.http() as client:
        query = {"key_id": "key_forged"}
        assert client.get("/mesh/v1/audit/events", params=query).json()["events"] == []


def test_nodes_whose_key_is_revoked_are_out(audited: Mesh, http: httpx.Client) -> None:
    # The last one here: both nodes of this mesh have that key. That they are out within a second
    # is `tests/contract/test_key_watch.py`'s, which can try it more than once.
    assert audited.ready_nodes() == {"node-1", "node-embed"}
    http.delete("/mesh/v1/keys/key_bootstrapnode").raise_for_status()
    audited.wait("no node", lambda: not audited.ready_nodes() or None)
    chat = {"model": CHAT, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    audited.wait(
        "no answer", lambda: http.post("/v1/chat/completions", json=chat).status_code == 503
    )
    time.sleep(3)
    assert not audited.ready_nodes()  # they do not come back
