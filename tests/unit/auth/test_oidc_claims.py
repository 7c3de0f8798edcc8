"""Which claim means what."""

from typing import Any

import pytest

from infermesh.access.v1 import access_pb2
from services.auth.keyring import Grant
from services.auth.oidc import claims as mapping
from services.auth.oidc.parsing import RefusedTokenError
from unit.auth.oidc_samples import NOW, claims, settings

ADMIN, OPERATOR = access_pb2.ROLE_ADMIN, access_pb2.ROLE_OPERATOR
AUDITOR, USER = access_pb2.ROLE_AUDITOR, access_pb2.ROLE_USER


def granted(said: dict[str, Any], **fields: Any) -> Grant:
    return mapping.grant(claims(**said), settings(**fields), NOW)


def refused(said: dict[str, Any], **fields: Any) -> str:
    with pytest.raises(RefusedTokenError) as caught:
        granted(said, **fields)
    return caught.value.why


@pytest.mark.parametrize(
    ("values", "role"),
    [
        (["mesh-admin"], ADMIN),
        ("mesh-admin", ADMIN),
        (["mesh-read", "mesh-ops", "x"], OPERATOR),
        (["mesh-ops", "mesh-admin", "mesh-read"], ADMIN),
        (["mesh-read"], AUDITOR),
        (["x"], USER),
        ([], USER),
        (None, USER),
        ([1, None, {}, ["mesh-admin"]], USER),
        ({"mesh-admin": True}, USER),
        (["Mesh-Admin"], USER),
        # One value with a space in it, and not two.
        ("no mesh-admin", USER),
    ],
)
def test_the_most_powerful_role_counts(values: Any, role: int) -> None:
    assert granted({"realm_access": {"roles": values}}).role == role


def test_without_a_default_only_mapped_roles_get_in() -> None:
    assert refused({"realm_access": {"roles": ["x"]}}, default_role=None) == "role"
    assert refused({}, default_role=None) == "role"
    assert granted({"realm_access": {"roles": ["mesh-read"]}}, default_role=None).role == AUDITOR
    assert refused({"realm_access": {"roles": ["mesh-admin"] * 1001}}) == "role"


def test_a_role_for_all() -> None:
    assert granted({}, role_claim=None, roles={}, default_role="auditor").role == AUDITOR


@pytest.mark.parametrize("claim", ["scope", "scp", "access.scope"])
def test_scopes_are_lists_with_spaces(claim: str) -> None:
    said: dict[str, Any] = {claim: "openid mesh-ops email"}
    if "." in claim:
        said = {"access": {"scope": "openid mesh-ops email"}}
    assert granted(said, role_claim=claim).role == OPERATOR


def test_claims_whose_names_have_dots() -> None:
    name = "https://acme.example/tenant"
    assert granted({name: "beta"}, tenant_claim=name).tenant == "beta"
    said = {"org.tenant": "first", "org": {"tenant": "second"}}
    assert granted(said, tenant_claim="org.tenant").tenant == "first"
    assert granted({"org": {"tenant": "second"}}, tenant_claim="org.tenant").tenant == "second"
    for value in ({}, {"tenant": None}, "tenant", ["tenant"], None):
        assert refused({"org": value}, tenant_claim="org.tenant") == "tenant"


def test_a_tenant_for_all() -> None:
    fixed = granted({"tenant": "other"}, tenant_claim=None, tenant="beta")
    assert fixed.tenant == "beta"


def test_projects() -> None:
    assert granted({"team": "search"}, project_claim="team").project == "search"
    for value in (None, "", "Search", "a/b", 1, ["search"], "s" * 64):
        assert refused({"team": value}, project_claim="team") == "project"


def test_models() -> None:
    grant = granted({"models": ["smollm2-*", "all-minilm-l6-v2"]}, models_claim="models")
    assert grant.bounds is not None and grant.bounds.models is not None
    assert grant.bounds.models.allow("smollm2-135m")
    assert not grant.bounds.models.allow("other")
    assert granted({"models": "a"}, models_claim="models").bounds is not None
    for value in (
        *(None, "", [], {}, 1, [1], [""], ["a b"], ["a,b"], ["!a"], ["a\n"], ["м"]),
        *(["a"] * 51, ["a" * 201], ["a" * 200] * 25),
    ):
        assert refused({"models": value}, models_claim="models") == "models", value


def test_a_grant_ends_with_its_token() -> None:
    assert granted({}).expires_s == NOW
