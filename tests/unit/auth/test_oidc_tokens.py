"""Whose tokens open the door, to what, and for how long."""

import asyncio
from typing import Any

import pytest

from infermesh.access.v1 import access_pb2
from oidc_issuer import make_private_key, public_jwk
from services.auth.keyring import Grant
from services.auth.oidc import bearer
from services.kit.errors import MeshError
from unit.auth.oidc_samples import (
    ALGORITHMS,
    NOW,
    URL,
    claims,
    header,
    private_key,
    ready,
    sign,
    token,
)


def message(found: object) -> str:
    assert isinstance(found, MeshError)
    return found.message


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_token_of_each_algorithm_is_its_subject(algorithm: str) -> None:
    world = await ready()
    grant = world.find(token(algorithm))
    assert isinstance(grant, Grant)
    assert grant.key_id == "oidc:acme:cp19Y4zvG0dsmtHV0nXckf"
    assert (grant.tenant, grant.project, grant.role) == ("acme", "default", access_pb2.ROLE_USER)
    assert grant.bounds is None
    assert world.adopted == [("acme", "default")]


async def test_the_key_id_is_of_the_subject_alone_and_short() -> None:
    world = await ready(name="n" * 32)
    first, again, other = (
        world.find(text)
        for text in (token(sub="a"), token("EdDSA", sub="a", exp=NOW + 60), token(sub="b"))
    )
    assert isinstance(first, Grant) and isinstance(again, Grant) and isinstance(other, Grant)
    assert first.key_id == again.key_id != other.key_id
    assert len(first.key_id) <= 64


async def test_a_token_is_verified_once_and_looked_up_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await ready()
    text = token()
    grant = world.find(text)
    monkeypatch.setattr(bearer, "parse", None)
    assert world.find(text) is grant
    assert len(world.adopted) == 1


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bearer, "MAX_CACHED", 2)
    world = await ready()
    texts = [token(sub=name) for name in "abc"]
    grants = [world.find(text) for text in texts]
    assert len(world.bearers._seen) == 2
    assert [world.find(texts[at]) is grants[at] for at in (2, 1, 0)] == [True, True, False]


async def test_a_token_ends_with_its_expiry_and_the_leeway() -> None:
    world = await ready(leeway_s=30)
    text = token(exp=NOW + 100)
    assert isinstance(world.find(text), Grant)
    world.now = NOW + 129.9
    assert isinstance(world.find(text), Grant)
    world.now = NOW + 130
    assert message(world.find(text)) == "The bearer token is expired."
    assert not world.bearers._seen


async def test_a_token_ends_when_its_key_is_withdrawn() -> None:
    world = await ready()
    text = token("ES256")
    grant = world.find(text)
    await world.issuer.refresh()
    assert world.find(text) is grant
    world.keys = [key for key in world.keys if key["kid"] != "ES256"]
    await world.issuer.refresh()
    assert message(world.find(text)) == "The bearer token is not valid."


async def test_tokens_are_good_while_the_issuer_is_away_but_not_for_ever() -> None:
    world = await ready(keys_max_age_s=3600)
    world.is_away = True
    text = token(exp=NOW + 7200)
    grant = world.find(text)
    world.now = NOW + 3599
    await world.issuer.refresh()
    assert world.find(text) is grant
    assert isinstance(world.find(token(exp=NOW + 7200, sub="other")), Grant)
    world.now = NOW + 3600
    await world.issuer.refresh()
    refused = world.find(text)
    assert isinstance(refused, MeshError)
    assert refused.reason_name == "SERVICE_UNAVAILABLE"
    world.is_away = False
    await world.issuer.refresh()
    assert isinstance(world.find(text), Grant)


async def test_a_new_key_is_fetched_for_the_token_that_names_it() -> None:
    world = await ready()
    loop = asyncio.create_task(world.issuer.run())
    await asyncio.sleep(0)
    fetched = world.fetched
    new = make_private_key("ES256")
    world.keys = [public_jwk(new, "new")]
    text = sign(claims(), header("ES256", kid="new"), "ES256", new)
    world.now += 10
    found = [world.bearers.find(text) for _ in range(50)]
    assert all(isinstance(each, asyncio.Future) for each in found)
    grants = await asyncio.gather(*found)  # type: ignore[arg-type]
    assert all(isinstance(each, Grant) for each in grants)
    assert world.fetched == fetched + 1
    loop.cancel()


async def test_unknown_keys_are_asked_for_once_in_ten_seconds() -> None:
    world = await ready()
    text = sign(claims(), header("ES256", kid="none"), "ES256", private_key("ES256"))
    world.now += 9.9
    assert message(world.find(text)) == "The bearer token is not valid."
    world.now += 0.1
    later = world.bearers.find(text)
    assert isinstance(later, asyncio.Future)
    await asyncio.sleep(0)
    await world.issuer.refresh()
    assert message(await later) == "The bearer token is not valid."
    assert message(world.find(text)) == "The bearer token is not valid."
    assert world.fetched == 2


async def test_only_so_many_wait_for_keys() -> None:
    world = await ready()
    world.now += 10
    text = sign(claims(), header("ES256", kid="none"), "ES256", private_key("ES256"))
    waiting: list[Any] = [world.bearers.find(text) for _ in range(256)]
    assert message(world.find(text)) == "The bearer token is not valid."
    await world.issuer.refresh()
    assert all(isinstance(each, MeshError) for each in await asyncio.gather(*waiting))
    assert world.issuer.can_ask() is False  # ten seconds have not passed
    world.now += 10
    assert world.issuer.can_ask() is True


async def test_a_token_without_a_key_id_needs_a_single_key() -> None:
    world = await ready()
    nameless = sign(claims(), header("ES256", kid=None), "ES256", private_key("ES256"))
    assert isinstance(world.find(nameless), Grant)
    world.keys.append(public_jwk(make_private_key("ES256"), "second"))
    await world.issuer.refresh()
    other = sign(claims(sub="other"), header("ES256", kid=None), "ES256", private_key("ES256"))
    assert message(world.find(other)) == "The bearer token is not valid."


async def test_what_is_no_token_is_nobodys_here() -> None:
    world = await ready()
    for text in ("", "im-" + "u" * 43, "eyJ", "a.b.c", "e.", "é.é.é", "e\ud800.."):
        assert world.find(text) is None


async def test_the_leeway_holds_for_the_start_as_well() -> None:
    world = await ready(leeway_s=30)
    assert isinstance(world.find(token(nbf=NOW + 30, iat=NOW + 30)), Grant)
    assert message(world.find(token(nbf=NOW + 31))) == "The bearer token is not valid."
    assert message(world.find(token(iat=NOW + 31))) == "The bearer token is not valid."


async def test_a_token_that_lives_too_long_is_refused() -> None:
    world = await ready(max_lifetime_s=3600)
    assert isinstance(world.find(token(iat=NOW - 100, exp=NOW + 3500)), Grant)
    for text in (
        token(iat=NOW - 100, exp=NOW + 3501),
        token(iat=None, exp=NOW + 3601),
        # An `iat` of tomorrow makes no token shorter.
        token(iat=NOW + 20, exp=NOW + 3610),
    ):
        assert message(world.find(text)) == "The bearer token is not valid."


async def test_audiences() -> None:
    world = await ready(audience=["infermesh", "other"])
    for good in ("infermesh", "other", ["x", "infermesh"]):
        assert isinstance(world.find(token(aud=good)), Grant)
    for bad in ("Infermesh", "infermesh ", [], ["x"], [["infermesh"]], {"infermesh": 1}, 1):
        assert message(world.find(token(aud=bad))) == "The bearer token is not valid.", bad


async def test_issuers_are_told_apart_to_the_letter() -> None:
    world = await ready()
    for bad in (URL + "/", URL.upper(), URL + "\u200b", [URL], 1, {}):
        assert message(world.find(token(iss=bad))) == "The bearer token is not valid.", bad


async def test_algorithms_that_are_not_set_ask_the_issuer_for_nothing() -> None:
    world = await ready(algorithms=["RS256"])
    world.now += 10
    for algorithm in ("ES256", "PS256", "RS512", "EdDSA"):
        assert message(world.find(token(algorithm))) == "The bearer token is not valid."
    hs256 = sign(claims(), header("HS256"), "HS256", b"s" * 32)
    assert message(world.find(hs256)) == "The bearer token is not valid."
    assert isinstance(world.find(token("RS256")), Grant)
    assert world.fetched == 1
