"""The commands against a mesh's contracts: what they send, what they print, how they fail."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2, timestamp_pb2
from typer.testing import CliRunner

from infermesh.access.v1 import access_pb2
from infermesh.auth.v1 import (
    key_service_pb2,
    key_service_pb2_grpc,
    tenant_service_pb2,
    tenant_service_pb2_grpc,
)
from infermesh.errors.v1 import errors_pb2
from infermesh.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from infermesh.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from infermesh.registry.v1 import (
    model_service_pb2,
    model_service_pb2_grpc,
    node_service_pb2,
    node_service_pb2_grpc,
    resources_pb2,
)
from services.cli.main import app
from services.kit import guard
from services.kit.errors import MeshError

SECRET = "im-admin"
NODE = resources_pb2.Node(
    node_id="node-1",
    address="127.0.0.1:17021",
    engine="llamacpp",
    models=[resources_pb2.ServedModel(name="m")],
    state=resources_pb2.NODE_STATE_READY,
    load=resources_pb2.NodeLoad(running=3),
)


@dataclass
class Scripted(
    key_service_pb2_grpc.KeyServiceServicer,
    tenant_service_pb2_grpc.TenantServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
    node_service_pb2_grpc.NodeServiceServicer,
    metrics_service_pb2_grpc.MetricsServiceServicer,
    inference_service_pb2_grpc.InferenceServiceServicer,
):
    """Answers with fixed resources and keeps what it was asked."""

    asked: list[Any] = field(default_factory=list)

    def _take(self, request: Any, context: Any) -> None:
        metadata = dict(context.invocation_metadata())
        if metadata.get("authorization") != f"Bearer {SECRET}":
            raise MeshError(errors_pb2.ERROR_REASON_INVALID_API_KEY, "The API key is not valid.")
        self.asked.append(request)

    async def CreateKey(self, request, context):  # noqa: N802
        self._take(request, context)
        key = key_service_pb2.Key(key_id="key_1", display_name=request.display_name)
        return key_service_pb2.CreateKeyResponse(key=key, secret="im-new")

    async def ListKeys(self, request, context):  # noqa: N802
        self._take(request, context)
        now = timestamp_pb2.Timestamp(seconds=1_700_000_000)
        if not request.page_token:
            key = key_service_pb2.Key(
                key_id="key_1", role=access_pb2.ROLE_ADMIN, create_time=now, prefix="im-abcd"
            )
            return key_service_pb2.ListKeysResponse(keys=[key], next_page_token="2")
        key = key_service_pb2.Key(
            key_id="key_2", role=access_pb2.ROLE_USER, create_time=now, revoke_time=now
        )
        return key_service_pb2.ListKeysResponse(keys=[key])

    async def RevokeKey(self, request, context):  # noqa: N802
        self._take(request, context)
        if request.key_id != "key_1":
            raise MeshError(errors_pb2.ERROR_REASON_NOT_FOUND, "There is no such key.")
        return key_service_pb2.Key(key_id="key_1", display_name="app")

    async def GetKey(self, request, context):  # noqa: N802
        self._take(request, context)
        rules = key_service_pb2.KeyRules(allowed_models=["a"], labels={"team": "old"})
        return key_service_pb2.Key(key_id="key_1", display_name="app", rules=rules)

    async def UpdateKey(self, request, context):  # noqa: N802
        self._take(request, context)
        return key_service_pb2.Key(key_id="key_1", display_name="app")

    async def RotateKey(self, request, context):  # noqa: N802
        self._take(request, context)
        until = timestamp_pb2.Timestamp(seconds=1_700_000_000)
        key = key_service_pb2.Key(key_id="key_1", old_secret_expire_time=until)
        return key_service_pb2.RotateKeyResponse(key=key, secret="im-newer")

    async def CreateTenant(self, request, context):  # noqa: N802
        self._take(request, context)
        return tenant_service_pb2.Tenant(tenant=request.tenant)

    async def ListTenants(self, request, context):  # noqa: N802
        self._take(request, context)
        name = "zoo" if request.page_token else "acme"
        return tenant_service_pb2.ListTenantsResponse(
            tenants=[tenant_service_pb2.Tenant(tenant=name)],
            next_page_token="" if request.page_token else "2",
        )

    async def DeleteProject(self, request, context):  # noqa: N802
        self._take(request, context)
        return empty_pb2.Empty()

    async def ListModels(self, request, context):  # noqa: N802
        self._take(request, context)
        model = resources_pb2.Model(
            name="m", capabilities=[resources_pb2.CAPABILITY_CHAT], ready_node_count=2
        )
        return model_service_pb2.ListModelsResponse(models=[model])

    async def DeleteModel(self, request, context):  # noqa: N802
        self._take(request, context)
        return empty_pb2.Empty()

    async def ListNodes(self, request, context):  # noqa: N802
        self._take(request, context)
        return node_service_pb2.ListNodesResponse(nodes=[NODE])

    async def DrainNode(self, request, context):  # noqa: N802
        self._take(request, context)
        offline = request.node_id == "node-3"
        state = "NODE_STATE_OFFLINE" if offline else "NODE_STATE_DRAINING"
        return resources_pb2.Node(node_id=request.node_id, state=state)

    async def ResumeNode(self, request, context):  # noqa: N802
        self._take(request, context)
        return NODE

    async def DeleteNode(self, request, context):  # noqa: N802
        self._take(request, context)
        if request.node_id != "node-1":
            raise MeshError(errors_pb2.ERROR_REASON_NOT_FOUND, "There is no such node.")
        return empty_pb2.Empty()

    async def GetMeshHealth(self, request, context):  # noqa: N802
        self._take(request, context)
        services = [
            metrics_service_pb2.ServiceHealth(name="auth", serving=True, latency_ms=1.24),
            metrics_service_pb2.ServiceHealth(name="routing", detail="connection refused"),
        ]
        return metrics_service_pb2.GetMeshHealthResponse(services=services)

    async def StreamChat(self, request, context) -> AsyncIterator[Any]:  # noqa: N802
        self._take(request, context)
        for word in ("Hello", " world"):
            delta = inference_service_pb2.ChatDelta(content=word)
            yield inference_service_pb2.StreamChatResponse(deltas=[delta])


@dataclass
class Cli:
    """Runs commands against the scripted mesh."""

    port: int
    mesh: Scripted

    def __call__(self, *arguments: str, text: str | None = None, **env: str) -> Any:
        env = {"INFERMESH_ADDRESS": f"127.0.0.1:{self.port}", "INFERMESH_KEY": SECRET} | env
        env |= {"COLUMNS": "160", "NO_COLOR": "1"}
        return CliRunner().invoke(app, arguments, env=env, input=text)


@pytest.fixture(scope="module")
def scripted(free_port: Callable[[], int]) -> Iterator[Cli]:
    mesh, port = Scripted(), free_port()
    loop = asyncio.new_event_loop()

    async def start() -> grpc.aio.Server:
        server = grpc.aio.server()
        guarded = guard.guarded(server)
        key_service_pb2_grpc.add_KeyServiceServicer_to_server(mesh, guarded)
        tenant_service_pb2_grpc.add_TenantServiceServicer_to_server(mesh, guarded)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(mesh, guarded)
        node_service_pb2_grpc.add_NodeServiceServicer_to_server(mesh, guarded)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(mesh, guarded)
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(mesh, guarded)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        return server

    # The commands block, so the mesh runs in a thread of its own.
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield Cli(port, mesh)
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.fixture
def cli(scripted: Cli) -> Cli:
    scripted.mesh.asked.clear()
    return scripted


def test_keys_create_prints_the_secret_alone(cli):
    done = cli("keys", "create", "app", "--role", "node", "--tenant", "team-a")
    assert (done.exit_code, done.stdout) == (0, "im-new\n")
    (request,) = cli.mesh.asked
    assert request.display_name == "app"
    assert request.role == access_pb2.ROLE_NODE
    assert request.tenant == "team-a"


def test_keys_list_reads_all_pages(cli):
    done = cli("keys", "list")
    assert done.exit_code == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["key_1", "admin", "im-abcd…", "2023-11-14", "22:13", "valid"] in lines
    assert ["key_2", "user", "…", "2023-11-14", "22:13", "revoked"] in lines


def test_keys_revoke(cli):
    done = cli("keys", "revoke", "key_1")
    assert (done.exit_code, done.stdout) == (0, "key_1 (app) is revoked.\n")


def test_keys_create_with_rules(cli):
    rules = ("--allow-model", "a*", "--allow-model", "b", "--deny-model", "ab", "--label", "t=x=y")
    where = ("--network", "10.0.0.0/8", "--project", "web", "--expires", "90d", "--caching", "on")
    assert cli("keys", "create", "app", *rules, *where).exit_code == 0
    (request,) = cli.mesh.asked
    assert request.project == "web"
    assert request.ttl.seconds == 90 * 86400
    assert list(request.rules.allowed_models) == ["a*", "b"]
    assert list(request.rules.denied_models) == ["ab"]
    assert list(request.rules.networks) == ["10.0.0.0/8"]
    assert dict(request.rules.labels) == {"t": "x=y"}
    assert request.rules.caching == key_service_pb2.CACHING_ON
    assert cli("keys", "create", "app", "--expires", "soon").exit_code == 2
    assert cli("keys", "create", "app", "--label", "x").exit_code == 2


def test_keys_update_leaves_the_rules_that_it_does_not_name(cli):
    done = cli("keys", "update", "key_1", "--role", "auditor", "--label", "team=new")
    assert (done.exit_code, done.stdout) == (0, "key_1 (app) is changed.\n")
    request = cli.mesh.asked[-1]
    assert request.role == access_pb2.ROLE_AUDITOR
    assert not request.HasField("display_name")
    assert list(request.rules.allowed_models) == ["a"]
    assert dict(request.rules.labels) == {"team": "new"}

    cli("keys", "update", "key_1", "--caching", "off")
    request = cli.mesh.asked[-1]
    assert request.rules.caching == key_service_pb2.CACHING_OFF
    assert dict(request.rules.labels) == {"team": "old"}
    cli("keys", "update", "key_1", "--caching", "call")
    assert cli.mesh.asked[-1].rules == key_service_pb2.KeyRules(
        allowed_models=["a"], labels={"team": "old"}
    )

    cli("keys", "update", "key_1", "--name", "other")
    request = cli.mesh.asked[-1]
    assert not request.HasField("rules")
    assert not request.HasField("role")

    cli("keys", "update", "key_1", "--free")
    assert cli.mesh.asked[-1].rules == key_service_pb2.KeyRules()
    assert cli.mesh.asked[-1].HasField("rules")


def test_keys_rotate_prints_the_secret_alone(cli):
    done = cli("keys", "rotate", "key_1", "--overlap", "0s")
    assert (done.exit_code, done.stdout) == (0, "im-newer\n")
    (request,) = cli.mesh.asked
    assert request.HasField("overlap")
    assert request.overlap.seconds == 0


def test_keys_show(cli):
    done = cli("keys", "show", "key_1")
    assert done.exit_code == 0
    assert ["labels", "team=old"] in [line.split() for line in done.stdout.splitlines()]


def test_tenants_and_projects(cli):
    assert cli("tenants", "create", "acme").exit_code == 0
    lines = [line.split() for line in cli("tenants", "list").stdout.splitlines()]
    assert [line[0] for line in lines if line and line[0] in ("acme", "zoo")] == ["acme", "zoo"]
    assert cli("projects", "delete", "acme", "web").exit_code == 0
    request = cli.mesh.asked[-1]
    assert (request.tenant, request.project) == ("acme", "web")


def test_models(cli):
    assert "m" in cli("models", "list").stdout
    done = cli("models", "delete", "m")
    assert (done.exit_code, done.stdout) == (0, "m is deleted.\n")


def test_nodes(cli):
    listed = cli("nodes", "list").stdout
    (line,) = (line for line in listed.splitlines() if "node-1" in line)
    assert line.split() == [
        "node-1",
        "ready",
        "127.0.0.1:17021",
        "llamacpp",
        "m",
        "0",
        "3",
        "unknown",
    ]
    assert cli("nodes", "drain", "node-1").stdout == "node-1 is draining.\n"
    when_back = "node-3 is offline. It will be draining when it is back.\n"
    assert cli("nodes", "drain", "node-3").stdout == when_back
    assert cli("nodes", "resume", "node-1").stdout == "node-1 is ready.\n"
    assert cli("nodes", "delete", "node-1").stdout == "node-1 is deleted.\n"


def test_status(cli):
    done = cli("status")
    assert done.exit_code == 0
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["auth", "serving", "1.2"] in rows
    assert ["routing", "down", "connection", "refused"] in rows
    assert ["m", "chat", "unknown", "2"] in rows


def test_chat_streams_an_answer(cli):
    done = cli("chat", "m", "Hi", "--system", "Be short.")
    assert (done.exit_code, done.stdout) == (0, "Hello world\n")
    (request,) = cli.mesh.asked
    said = [(m.role, m.content[0].text) for m in request.chat.messages]
    assert said == [
        (inference_service_pb2.CHAT_ROLE_SYSTEM, "Be short."),
        (inference_service_pb2.CHAT_ROLE_USER, "Hi"),
    ]


def test_chat_keeps_the_conversation(cli):
    done = cli("chat", "m", text="One\nTwo\n\n")
    assert done.exit_code == 0
    assert done.stdout.count("Hello world\n") == 2
    said = [m.content[0].text for m in cli.mesh.asked[-1].chat.messages][1:]
    assert said == ["One", "Hello world", "Two"]


@pytest.mark.parametrize(
    ("arguments", "env", "line"),
    [
        (("keys", "revoke", "key_2"), {}, "There is no such key."),
        (("nodes", "delete", "node-2"), {}, "There is no such node."),
        (("keys", "list"), {"INFERMESH_KEY": "im-wrong"}, "The API key is not valid."),
        (("keys", "create", "app", "--tenant", "A B"), {}, "tenant: "),
        (("status",), {"INFERMESH_ADDRESS": "127.0.0.1:1"}, "Nothing answers at 127.0.0.1:1."),
    ],
)
def test_a_failure_is_one_line(cli, arguments, env, line):
    done = cli(*arguments, **env)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(line)


def test_the_key_of_the_mesh_here_is_found(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".infermesh").mkdir()
    (tmp_path / ".infermesh" / "admin.key").write_text(SECRET + "\n")
    assert cli("models", "list", INFERMESH_KEY="").exit_code == 0
    (tmp_path / ".infermesh" / "admin.key").unlink()
    done = cli("models", "list", INFERMESH_KEY="")
    assert (done.exit_code, done.stderr.split(":")[0]) == (1, "No key")
