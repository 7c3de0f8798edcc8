"""Tenants, projects, and keys with rules, over gRPC and on a real PostgreSQL."""

from collections.abc import AsyncIterator

import grpc
import pytest
import sqlalchemy as sa

from contract.test_auth import Replica, becomes, refusal, running, settings
from infermesh.access.v1 import access_pb2
from infermesh.auth.v1 import key_service_pb2 as kb
from infermesh.auth.v1 import tenant_service_pb2 as pb
from infermesh.auth.v1 import tenant_service_pb2_grpc
from services.kit.database import make_engine
from support import becomes_within


@pytest.fixture
async def replica(postgres_url: str) -> AsyncIterator[Replica]:
    async with running(settings(postgres_url)) as one:
        yield one


@pytest.fixture
def tenants(replica: Replica) -> tenant_service_pb2_grpc.TenantServiceStub:
    return tenant_service_pb2_grpc.TenantServiceStub(replica.channel)


async def fails(call: object, reason: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    assert refusal(caught).reason_name == reason


async def test_the_life_of_a_tenant(
    replica: Replica, tenants: tenant_service_pb2_grpc.TenantServiceStub
) -> None:
    made = await tenants.CreateTenant(pb.CreateTenantRequest(tenant="life", display_name="Life"))
    assert (made.tenant, made.display_name) == ("life", "Life")
    await fails(tenants.CreateTenant(pb.CreateTenantRequest(tenant="life")), "FAILED_PRECONDITION")
    assert await tenants.GetTenant(pb.GetTenantRequest(tenant="life")) == made
    changed = await tenants.UpdateTenant(pb.UpdateTenantRequest(tenant="life", display_name="L"))
    assert (changed.display_name, changed.create_time) == ("L", made.create_time)

    of_life = pb.ListProjectsRequest(tenant="life")
    assert [p.project for p in (await tenants.ListProjects(of_life)).projects] == ["default"]
    web = pb.CreateProjectRequest(tenant="life", project="web", display_name="Web")
    assert (await tenants.CreateProject(web)).display_name == "Web"
    await fails(tenants.CreateProject(web), "FAILED_PRECONDITION")
    renamed = pb.UpdateProjectRequest(tenant="life", project="web", display_name="W")
    assert (await tenants.UpdateProject(renamed)).display_name == "W"
    page = await tenants.ListProjects(pb.ListProjectsRequest(tenant="life", page_size=1))
    assert [p.project for p in page.projects] == ["default"]
    page = await tenants.ListProjects(
        pb.ListProjectsRequest(tenant="life", page_token=page.next_page_token)
    )
    assert ([p.project for p in page.projects], page.next_page_token) == (["web"], "")

    key = (await replica.create(tenant="life", project="web")).key
    this = pb.DeleteProjectRequest(tenant="life", project="web")
    await fails(tenants.DeleteProject(this), "FAILED_PRECONDITION")
    whole = pb.DeleteTenantRequest(tenant="life")
    await fails(tenants.DeleteTenant(whole), "FAILED_PRECONDITION")
    await replica.keys.RevokeKey(kb.RevokeKeyRequest(key_id=key.key_id))
    await tenants.DeleteProject(this)
    await fails(tenants.GetProject(pb.GetProjectRequest(tenant="life", project="web")), "NOT_FOUND")
    await tenants.DeleteTenant(whole)
    for call in (
        tenants.GetTenant(pb.GetTenantRequest(tenant="life")),
        tenants.DeleteTenant(whole),
        tenants.ListProjects(of_life),
        tenants.CreateProject(web),
        tenants.UpdateTenant(pb.UpdateTenantRequest(tenant="life")),
    ):
        await fails(call, "NOT_FOUND")


async def test_the_default_ones_stay(
    tenants: tenant_service_pb2_grpc.TenantServiceStub,
) -> None:
    assert (await tenants.GetTenant(pb.GetTenantRequest(tenant="default"))).tenant == "default"
    delete = tenants.DeleteTenant(pb.DeleteTenantRequest(tenant="default"))
    await fails(delete, "FAILED_PRECONDITION")
    project = pb.DeleteProjectRequest(tenant="default", project="default")
    await fails(tenants.DeleteProject(project), "FAILED_PRECONDITION")
    await fails(tenants.CreateTenant(pb.CreateTenantRequest(tenant="A B")), "INVALID_ARGUMENT")
    for token in ("!", "AA", "Li4"):
        listed = tenants.ListTenants(pb.ListTenantsRequest(page_token=token))
        await fails(listed, "INVALID_ARGUMENT")


async def test_a_key_brings_its_tenant_and_project(
    replica: Replica, tenants: tenant_service_pb2_grpc.TenantServiceStub
) -> None:
    made = await replica.create(tenant="brought", project="along")
    assert (made.key.tenant, made.key.project) == ("brought", "along")
    await tenants.GetProject(pb.GetProjectRequest(tenant="brought", project="along"))
    names, token = [], ""
    while True:
        page = await tenants.ListTenants(pb.ListTenantsRequest(page_size=1, page_token=token))
        names.extend(each.tenant for each in page.tenants)
        token = page.next_page_token
        if not token:
            break
    assert names == sorted(set(names))
    assert {"brought", "default"} <= set(names)


async def test_keys_of_before_tenants_are_taken_over(postgres_url: str) -> None:
    async with running(settings(postgres_url)) as replica:
        await replica.create(tenant="elder")
    engine = make_engine(postgres_url)
    async with engine.begin() as connection:
        await connection.execute(sa.text("DROP TABLE auth.tenants, auth.projects"))
    await engine.dispose()
    async with running(settings(postgres_url)) as replica:
        stub = tenant_service_pb2_grpc.TenantServiceStub(replica.channel)
        assert (await stub.GetTenant(pb.GetTenantRequest(tenant="elder"))).tenant == "elder"


async def test_rules_come_back_and_rotation_reaches_every_replica(postgres_url: str) -> None:
    async with running(settings(postgres_url)) as one, running(settings(postgres_url)) as two:
        rules = kb.KeyRules(
            allowed_models=["llama-*"],
            denied_models=["llama-70b"],
            networks=["10.0.0.0/8", "2001:db8::/32"],
            cors_origins=["https://app.example.com"],
            labels={"team": "search"},
            guardrails=kb.Guardrails(max_prompt_chars=9, blocked_patterns=["a+"], redact=[1, 3]),
        )

        async def change() -> float:
            took_s = []
            made = await one.create(rules=rules, ttl={"seconds": 3600})
            assert made.key.rules == rules
            assert made.key.HasField("expire_time")
            found = await two.keys.GetKey(kb.GetKeyRequest(key_id=made.key.key_id))
            assert found == made.key

            changed = kb.UpdateKeyRequest(key_id=made.key.key_id, rules=kb.KeyRules())
            assert not (await one.keys.UpdateKey(changed)).HasField("rules")

            async def passes() -> bool:
                return await two.check(made.secret) == 0

            # It was bound to networks; the checks of this test have no address.
            took_s.append(await becomes(passes))

            rotate = kb.RotateKeyRequest(key_id=made.key.key_id, overlap={"seconds": 0})
            rotated = await one.keys.RotateKey(rotate)
            assert await one.check(rotated.secret) == 0
            assert await one.check(made.secret) == grpc.StatusCode.UNAUTHENTICATED.value[0]

            async def follows() -> bool:
                return not await two.check(rotated.secret) and bool(await two.check(made.secret))

            took_s.append(await becomes(follows))

            role = kb.UpdateKeyRequest(key_id=made.key.key_id, role=access_pb2.ROLE_OPERATOR)
            await one.keys.UpdateKey(role)

            async def is_operator() -> bool:
                path = "/infermesh.registry.v1.NodeService/ListNodes"
                return await two.check(rotated.secret, path) == 0

            took_s.append(await becomes(is_operator))
            return max(took_s)

        await becomes_within(1.0, change)


@pytest.mark.parametrize(
    "rules",
    [
        {"allowed_models": ["a b"]},
        {"allowed_models": ["!a"]},
        {"denied_models": ["a,b"]},
        {"denied_models": ["mödel"]},
        {"networks": ["10.0.0.0"]},
        {"networks": ["everywhere"]},
        {"cors_origins": ["javascript:alert(1)"]},
        {"labels": {"": "x"}},
        {"labels": {"a": "x\n"}},
        {"allowed_models": ["a" * 200] * 21},
        {"guardrails": {"max_prompt_chars": 0}},
        {"guardrails": {"blocked_patterns": ["("]}},
        {"guardrails": {"blocked_patterns": [""]}},
        {"guardrails": {"blocked_patterns": ["a"] * 21}},
        {"guardrails": {"redact": [0]}},
        {"guardrails": {"redact": [1, 1]}},
        {"guardrails": {"redact": [99]}},
    ],
)
async def test_rules_that_make_no_sense(replica: Replica, rules: dict[str, object]) -> None:
    await fails(replica.create(rules=rules), "INVALID_ARGUMENT")
