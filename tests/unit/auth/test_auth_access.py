"""The access that the protos declare, and the grammars that auth reads from them."""

import pytest

from infermesh.access.v1 import access_pb2
from services.auth import access, contracts, secret
from unit.auth.auth_samples import GRPC_CHAT, LIST_KEYS, REST_CHAT

SERVICES = contracts.services()
TABLE = access.build_table(SERVICES)

USER = 1 << access_pb2.ROLE_USER
NODE = 1 << access_pb2.ROLE_NODE
ADMIN = 1 << access_pb2.ROLE_ADMIN
JOIN = 1 << access_pb2.ROLE_JOIN

IDENTIFY = "/infermesh.inference.v1.IdentityService/Identify"
"""What the registry alone calls, past Envoy."""


@pytest.mark.parametrize("path", [f"/{s.full_name}/{m.name}" for s in SERVICES for m in s.methods])
def test_every_rpc_of_the_mesh_declares_roles(path: str) -> None:
    if path == IDENTIFY:
        assert path not in TABLE
    else:
        assert TABLE[path].roles & (USER | NODE | ADMIN | JOIN)


def test_a_join_token_opens_one_door_only() -> None:
    doors = {path for path, found in TABLE.items() if found.roles == JOIN}
    assert doors == {"/infermesh.auth.v1.JoinTokenService/RedeemJoinToken"}
    others = {path for path, found in TABLE.items() if found.roles & JOIN} - doors
    assert all(path.startswith("/grpc.") for path in others)


def test_all_six_services_are_found() -> None:
    packages = {str(s.full_name).split(".")[1] for s in SERVICES}
    assert packages == {"auth", "embeddings", "inference", "metrics", "registry", "routing"}


def test_the_table_says_what_the_protos_say() -> None:
    assert TABLE[LIST_KEYS] == (ADMIN, False)
    assert TABLE[REST_CHAT] == TABLE[GRPC_CHAT] == (USER | ADMIN, True)
    assert TABLE["/infermesh.registry.v1.NodeService/AttachNode"] == (NODE | ADMIN, False)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_any_key_may_reflect(version: str) -> None:
    path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    assert TABLE[path] == (USER | NODE | ADMIN | JOIN, False)


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
