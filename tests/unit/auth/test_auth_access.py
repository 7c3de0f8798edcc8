"""The access that the protos declare, and the grammars that auth reads from them."""

import re

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from infermesh.access.v1 import access_pb2
from services.auth import access, contracts, secret
from services.auth.keyring import Keyring
from unit.auth.auth_samples import (
    GRPC_CHAT,
    HASH_SECRET,
    LIST_KEYS,
    REST_CHAT,
    check_request,
    grpc_headers,
    make_decider,
    make_key,
    read_reply,
    rest_headers,
)

SERVICES = contracts.services()
TABLE = access.build_table(SERVICES)

USER = 1 << access_pb2.ROLE_USER
NODE = 1 << access_pb2.ROLE_NODE
ADMIN = 1 << access_pb2.ROLE_ADMIN
JOIN = 1 << access_pb2.ROLE_JOIN
OPERATOR = 1 << access_pb2.ROLE_OPERATOR
AUDITOR = 1 << access_pb2.ROLE_AUDITOR
ALL = USER | NODE | ADMIN | JOIN | OPERATOR | AUDITOR

RPCS = {f"/{s.full_name}/{m.name}": m for s in SERVICES for m in s.methods}
INTERNAL = {path for path, rpc in RPCS.items() if rpc.GetOptions().Extensions[access_pb2.internal]}
"""What services call directly, past Envoy."""


@pytest.mark.parametrize("path", RPCS)
def test_every_rpc_of_the_mesh_declares_roles_or_that_it_is_internal(path: str) -> None:
    declared = bool(RPCS[path].GetOptions().Extensions[access_pb2.allowed_roles])
    assert declared != (path in INTERNAL)
    assert bool(path in TABLE and TABLE[path].roles & ALL) == declared


@pytest.mark.parametrize("path", sorted(INTERNAL))
@pytest.mark.parametrize("role", sorted(access.ROLE_NAMES))
def test_nobody_reaches_an_internal_rpc_through_the_front_door(path: str, role: int) -> None:
    ring, plain = Keyring(HASH_SECRET), secret.make()
    ring.apply([make_key(ring, role, plain)])
    decider = make_decider(ring)
    for headers in (grpc_headers(plain), rest_headers(plain, path)):
        reply, _ = read_reply(decider.decide(check_request(path, headers)))
        nowhere = check_request("/infermesh.nowhere.v1.Service/Call", headers)
        # As for a path that does not exist: nobody learns that it does.
        assert reply.status.code == grpc.StatusCode.NOT_FOUND.value[0]
        assert reply.status == read_reply(decider.decide(nowhere))[0].status


def test_there_are_internal_rpcs() -> None:
    assert "/infermesh.inference.v1.IdentityService/Identify" in INTERNAL
    assert "/infermesh.auth.v1.AuditService/RecordAuditEvents" in INTERNAL


def test_a_join_token_opens_one_door_only() -> None:
    doors = {path for path, found in TABLE.items() if found.roles == JOIN}
    assert doors == {"/infermesh.auth.v1.JoinTokenService/RedeemJoinToken"}
    others = {path for path, found in TABLE.items() if found.roles & JOIN} - doors
    assert all(path.startswith("/grpc.") for path in others)


def test_all_services_are_found() -> None:
    packages = {str(s.full_name).split(".")[1] for s in SERVICES}
    platform = {"auth", "metrics", "registry", "routing"}
    assert packages == platform | {"embeddings", "inference", "jobs"}


def test_the_table_says_what_the_protos_say() -> None:
    assert TABLE[LIST_KEYS][:2] == (ADMIN | AUDITOR, False)
    assert TABLE[REST_CHAT][:2] == TABLE[GRPC_CHAT][:2] == (USER | ADMIN, True)
    assert TABLE["/infermesh.registry.v1.NodeService/AttachNode"][:2] == (NODE | ADMIN, False)


def test_an_rpc_without_a_role_is_no_rpc_to_callers() -> None:
    # What makes the test of every RPC above fail for a new one that declares nothing.
    file = descriptor_pb2.FileDescriptorProto(name="bare.proto", package="bare", syntax="proto3")
    file.message_type.add(name="Empty")
    service = file.service.add(name="Bare")
    service.method.add(name="Do", input_type=".bare.Empty", output_type=".bare.Empty")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    table = access.build_table([pool.FindServiceByName("bare.Bare")])
    assert not any(path.startswith("/bare.") for path in table)


def test_operators_run_the_mesh_and_hold_no_keys() -> None:
    may = {path for path, found in TABLE.items() if found.roles & OPERATOR}
    services = {path.split("/")[1] for path in may if path.startswith("/infermesh.")}
    assert services == {
        "infermesh.metrics.v1.MetricsService",
        "infermesh.metrics.v1.PriceService",
        "infermesh.registry.v1.ModelService",
        "infermesh.registry.v1.NodeService",
        "infermesh.registry.v1.OllamaPullService",
        "infermesh.routing.v1.OllamaCatalogService",
        "infermesh.routing.v1.OpenAIModelService",
        "infermesh.routing.v1.PolicyService",
        "infermesh.routing.v1.RoutingService",
        "infermesh.routing.v1.SplitService",
    }
    assert "/infermesh.registry.v1.NodeService/AttachNode" not in may
    # What tokens cost is the business of those who keep the keys.
    prices = {path.rpartition("/")[2] for path in may if ".PriceService/" in path}
    assert prices == {"GetPrice", "ListPrices"}
    partly = {"infermesh.registry.v1.NodeService", "infermesh.metrics.v1.PriceService"}
    for service in SERVICES:
        if service.full_name in services - partly:
            assert all(f"/{service.full_name}/{m.name}" in may for m in service.methods)


def test_auditors_read_everything_and_change_nothing() -> None:
    reads = re.compile(r"(Get|List|Show|Verify|Export|Watch|Explain)")
    for path, found in TABLE.items():
        if path.startswith("/infermesh.jobs."):  # what tenants have said is theirs alone
            assert not found.roles & AUDITOR, path
        elif ".OllamaCatalogService/" in path and not reads.search(path):
            continue  # refused, whoever asks
        elif path.startswith("/infermesh."):
            name = path.rpartition("/")[2]
            assert bool(found.roles & AUDITOR) == bool(reads.match(name)), path


def test_admins_may_whatever_an_operator_or_an_auditor_may() -> None:
    assert all(
        found.roles & ADMIN for found in TABLE.values() if found.roles & (OPERATOR | AUDITOR)
    )


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_any_key_may_reflect(version: str) -> None:
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    assert TABLE[path] == access.Access(ALL, names_model=False)


@pytest.mark.parametrize("name", ["smollm2-135m", "org/Model_1.5:latest@main+x", "a" * 200])
def test_model_names_that_can_exist(name: str) -> None:
    assert name in access.ModelNames()


@pytest.mark.parametrize("name", ["", "a b", "-a", "a\n", "a\x00", "a\r\nx: y", "é", "a" * 201])
def test_model_names_that_cannot(name: str) -> None:
    assert name not in access.ModelNames()


def test_secrets_keep_to_their_grammar() -> None:
    made = {secret.make() for _ in range(100)}
    assert len(made) == 100
    assert all(secret.is_well_formed(s) and len(s) == secret.LENGTH for s in made)
    assert not secret.is_well_formed(f"{made.pop()}\n")


def test_key_ids_keep_to_their_grammar() -> None:
    made = secret.make_key_id()
    assert len(made) == 16
    assert made.startswith("key_")
    assert made.removeprefix("key_").isalnum()
    assert made == made.lower()
