"""The audit log of a running auth service: calls, their outcomes, and the commands that read it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import orjson
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from contract.test_auth import ADMIN_KEY, LIST_KEYS, Line, Replica, refusal, running, settings
from infermesh.auth.v1 import (
    audit_service_pb2 as pb,
)
from infermesh.auth.v1 import (
    audit_service_pb2_grpc,
    join_token_service_pb2,
    join_token_service_pb2_grpc,
    key_service_pb2,
)
from services.cli.main import app
from services.kit.database import make_engine
from unit.auth.auth_samples import REST_CHAT, check_request, rest_headers

CALLER = (
    ("x-mesh-key-id", "key_boss"),
    ("x-mesh-tenant", "acme"),
    ("x-mesh-role", "admin"),
    ("x-request-id", "request-1"),
)
SERVICE = "/infermesh.auth.v1.KeyService/"


class World:
    """A replica with an audit log of its own."""

    def __init__(self, replica: Replica, url: str) -> None:
        self.replica = replica
        self.url = url
        self.audit = audit_service_pb2_grpc.AuditServiceStub(replica.channel)

    async def events(self, count: int, **filters: object) -> list[pb.AuditEvent]:
        """Returns the events, oldest first, once there are so many."""
        request = pb.ListAuditEventsRequest(oldest_first=True, page_size=1000, **filters)
        async with asyncio.timeout(20):
            while True:
                found = list((await self.audit.ListAuditEvents(request)).events)
                if len(found) >= count:
                    assert len(found) == count
                    return found
                await asyncio.sleep(0.02)

    async def run(self, *command: str) -> tuple[int, str]:
        """Runs a command; returns its status and what it printed."""
        arguments = [*command, "--address", self.replica.address, "--key", "im-x"]
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
        return result.exit_code, result.output


@pytest.fixture
async def world(postgres_url: str) -> AsyncIterator[World]:
    async with running(settings(postgres_url)) as replica:
        await wipe(postgres_url)
        yield World(replica, postgres_url)
    await wipe(postgres_url)


async def wipe(url: str, statement: str = "TRUNCATE auth.audit_events, auth.audit_chain") -> None:
    engine = make_engine(url)
    async with engine.begin() as connection:
        # As writers do, so that neither waits for the other.
        await connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('auth.audit'))"))
        await connection.execute(sa.text(statement))
    await engine.dispose()


async def test_a_change_is_told_with_before_and_after(world: World) -> None:
    keys = world.replica.keys
    request = key_service_pb2.CreateKeyRequest(display_name="ci", tenant="acme")
    made = await keys.CreateKey(request, metadata=CALLER)
    key_id = made.key.key_id
    await keys.RevokeKey(key_service_pb2.RevokeKeyRequest(key_id=key_id), metadata=CALLER)
    create, revoke = await world.events(2, key_id="key_boss")
    for event in (create, revoke):
        assert event.kind == pb.AUDIT_KIND_OUTCOME
        assert (event.tenant, event.role, event.request_id) == ("acme", "admin", "request-1")
        assert (event.resource, event.outcome) == (key_id, "OK")
        assert made.secret not in str(event)
    assert (create.rpc, revoke.rpc) == (f"{SERVICE}CreateKey", f"{SERVICE}RevokeKey")
    after = orjson.loads(create.after)
    assert (create.before, after["key"]["display_name"]) == ("", "ci")
    before, after = orjson.loads(revoke.before), orjson.loads(revoke.after)
    assert "revoke_time" in after
    assert before == {k: v for k, v in after.items() if k != "revoke_time"}


async def test_a_rule_is_told_with_before_and_after(world: World) -> None:
    keys = world.replica.keys
    request = key_service_pb2.CreateKeyRequest(display_name="ci", tenant="acme")
    made = await keys.CreateKey(request, metadata=CALLER)
    rules = key_service_pb2.KeyRules(caching=key_service_pb2.CACHING_OFF)
    request = key_service_pb2.UpdateKeyRequest(key_id=made.key.key_id, rules=rules)
    await keys.UpdateKey(request, metadata=CALLER)
    _, update = await world.events(2, key_id="key_boss")
    assert "rules" not in orjson.loads(update.before)
    assert orjson.loads(update.after)["rules"] == {"caching": "CACHING_OFF"}


async def test_a_token_is_told_of_too(world: World) -> None:
    tokens = join_token_service_pb2_grpc.JoinTokenServiceStub(world.replica.channel)
    request = join_token_service_pb2.CreateJoinTokenRequest(display_name="lab")
    made = await tokens.CreateJoinToken(request, metadata=CALLER)
    revoke = join_token_service_pb2.RevokeJoinTokenRequest(token_id=made.token.token_id)
    await tokens.RevokeJoinToken(revoke, metadata=CALLER)
    created, revoked = await world.events(2, key_id="key_boss")
    assert (created.resource, revoked.resource) == (made.token.token_id,) * 2
    assert orjson.loads(revoked.before)["display_name"] == "lab"
    assert made.secret not in f"{created}{revoked}"


async def test_a_change_that_fails_is_told_with_its_status(world: World) -> None:
    for key_id, status in (("key_zzzz", "NOT_FOUND"), ("", "INVALID_ARGUMENT")):
        request = key_service_pb2.RevokeKeyRequest(key_id=key_id)
        with pytest.raises(grpc.aio.AioRpcError):
            await world.replica.keys.RevokeKey(request, metadata=CALLER)
        [event] = await world.events(1, outcome=status)
        assert (event.resource, event.before, event.after) == (key_id, "", "")


async def test_decisions_and_outcomes_meet_in_one_log(world: World) -> None:
    assert await world.replica.check(ADMIN_KEY, LIST_KEYS) == 0
    assert await world.replica.check("im-" + "z" * 43, LIST_KEYS) != 0
    await world.replica.keys.ListKeys(key_service_pb2.ListKeysRequest(), metadata=CALLER)
    call, denial, outcome = await world.events(3, rpc=SERVICE)
    assert [call.kind, denial.kind, outcome.kind] == [
        pb.AUDIT_KIND_CALL,
        pb.AUDIT_KIND_DENIAL,
        pb.AUDIT_KIND_OUTCOME,
    ]
    assert (call.key_id, denial.presented) == ("key_bootstrapadmin", "im-zzzz")
    # What is only read is not copied.
    assert outcome.after == ""
    answer = await world.audit.VerifyAuditLog(pb.VerifyAuditLogRequest())
    assert (answer.complete, answer.HasField("fault")) == (True, False)


async def test_pages_go_both_ways(world: World) -> None:
    for _ in range(5):
        await world.replica.check(ADMIN_KEY, LIST_KEYS)
    await world.events(5, rpc=LIST_KEYS)
    for oldest_first in (False, True):
        request = pb.ListAuditEventsRequest(page_size=2, rpc=LIST_KEYS, oldest_first=oldest_first)
        sizes, seen = [], []
        while not sizes or request.page_token:
            page = await world.audit.ListAuditEvents(request)
            sizes.append(len(page.events))
            seen += [event.sequence for event in page.events]
            request.page_token = page.next_page_token
        assert sizes == [2, 2, 1]
        assert seen == sorted(set(seen), reverse=not oldest_first)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (pb.ListAuditEventsRequest(page_token="nope"), "page_token"),
        (pb.ListAuditEventsRequest(page_token="9" * 30), "page_token"),
        (pb.ListAuditEventsRequest(page_size=1001), "page_size"),
        (pb.ListAuditEventsRequest(key_id="a\0"), "key_id"),
        (pb.ListAuditEventsRequest(start_time={"seconds": 10**17}), "start_time"),
        (pb.VerifyAuditLogRequest(sequence=1), "hash"),
        (pb.VerifyAuditLogRequest(sequence=-1), "sequence"),
        (pb.VerifyAuditLogRequest(hash="zz"), "hash"),
    ],
)
async def test_refusals(world: World, request_: object, param: str) -> None:
    is_list = isinstance(request_, pb.ListAuditEventsRequest)
    call = world.audit.ListAuditEvents if is_list else world.audit.VerifyAuditLog
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(request_)
    found = refusal(caught)
    assert (found.reason_name, found.param) == ("INVALID_ARGUMENT", param)


async def test_the_commands_read_check_and_export(world: World, tmp_path: Path) -> None:
    for _ in range(4):
        await world.replica.check(ADMIN_KEY, LIST_KEYS)
    await world.events(4, rpc=LIST_KEYS)
    status, text = await world.run("audit", "list", "--rpc", LIST_KEYS, "--changes")
    assert status == 0
    assert text.count("key_bootstrapadmin") == 4
    status, text = await world.run("audit", "list", "--limit", "1")
    assert (status, "more: --page" in text) == (0, True)
    token = text.rpartition("--page ")[2].strip()
    status, text = await world.run("audit", "list", "--page", token, "--since", "1h")
    assert (status, "more" in text) == (0, False)
    status, text = await world.run("audit", "list", "--rpc", "auth.KeyService/ListKeys")
    assert "auth.KeyService/ListKeys" in text
    status, text = await world.run("audit", "list", "--kind", "denial")
    assert (status, text) == (0, "No audit events.\n")

    status, text = await world.run("audit", "verify")
    anchor = text.splitlines()[-1]
    assert status == 0
    assert "the chain holds" in text
    assert (await world.run("audit", "verify", "--anchor", anchor))[0] == 0
    number, _, hash_ = anchor.partition(":")
    status, text = await world.run("audit", "verify", "--anchor", f"{number}:{'0' * len(hash_)}")
    assert (status, f"event {number} was changed" in text) == (1, True)

    export = tmp_path / "audit.jsonl"
    assert (await world.run("audit", "export", str(export)))[0] == 0
    assert (await world.run("audit", "export", str(export)))[0] == 1  # nothing is written over
    verify = ("audit", "verify", "--file")
    assert (await world.run(*verify, str(export), "--anchor", anchor))[0] == 0
    lines = export.read_text().splitlines(keepends=True)
    for name, tampered, words in (
        ("changed", [lines[0], lines[1].replace("bootstrapadmin", "other"), *lines[2:]], "event 2"),
        ("missing", [lines[0], *lines[2:]], "before 3"),
        ("swapped", [lines[1], lines[0], *lines[2:]], "before 1"),
        ("broken", ["{"], "no export"),
    ):
        (tmp_path / name).write_text("".join(tampered))
        status, text = await world.run(*verify, str(tmp_path / name))
        assert (status, words in text) == (1, True), text

    await wipe(world.url, "UPDATE auth.audit_events SET source = 'x' WHERE sequence = 2")
    status, text = await world.run("audit", "verify")
    assert status == 1
    assert "event 2 was changed or moved" in text


async def test_inference_is_written_down_by_setting(postgres_url: str) -> None:
    async with running(settings(postgres_url, audit_inference="metadata")) as replica:
        await wipe(postgres_url)
        request = check_request(REST_CHAT, rest_headers(ADMIN_KEY), rest={"model": "m"})
        assert (await replica.authorization.Check(request)).status.code == 0
        [event] = await World(replica, postgres_url).events(1, kind=pb.AUDIT_KIND_INFERENCE)
        assert (event.key_id, event.resource) == ("key_bootstrapadmin", "m")
    await wipe(postgres_url)


async def test_what_happens_without_postgresql_arrives_when_it_is_back(postgres_url: str) -> None:
    line = Line(postgres_url)
    async with line.laid() as url, running(settings(url)) as replica:
        await wipe(postgres_url)
        line.cut()
        for _ in range(3):
            assert await replica.check(ADMIN_KEY, LIST_KEYS) == 0
        assert await replica.check("im-" + "z" * 43, LIST_KEYS) != 0
        line.mend()
        async with running(settings(postgres_url)) as other:
            found = await World(other, postgres_url).events(4, rpc=LIST_KEYS)
        assert [event.outcome for event in found] == ["OK"] * 3 + ["INVALID_API_KEY"]
    await wipe(postgres_url)
