"""Tokens that somebody made up: none gets in, none raises."""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import get_default_algorithms

from oidc_issuer import make_private_key, public_jwk
from services.auth.keyring import Grant
from services.kit.errors import MeshError
from unit.auth.oidc_samples import (
    ALGORITHMS,
    NOW,
    World,
    claims,
    encode,
    header,
    private_key,
    ready,
    sign,
    token,
    written,
)

RSA, EC, ED = private_key("RS256"), private_key("ES256"), private_key("EdDSA")
ATTACKER = make_private_key("ES256")
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def es(content: Any = None, **head: Any) -> str:
    """Returns a token signed by the issuer, with any claims and headers."""
    return sign(claims() if content is None else content, header("ES256", **head), "ES256", EC)


def unsigned(head: Any, signature: bytes = b"", content: Any = None) -> str:
    said = claims() if content is None else content
    return f"{encode(written(head))}.{encode(written(said))}.{encode(signature)}"


def by_shared_secret(algorithm: str, secret: bytes, kid: str = "RS256") -> str:
    text = unsigned({"alg": algorithm, "kid": kid}).rpartition(".")[0]
    return f"{text}.{encode(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"


def resigned(**changed: Any) -> str:
    """Returns a good token's signature under other claims."""
    _, _, signature = token().rpartition(".")
    return f"{encode(written(header('ES256')))}.{encode(written(claims(**changed)))}.{signature}"


def rsa_public_forms() -> Iterator[bytes]:
    public = RSA.public_key()
    pem, der = serialization.Encoding.PEM, serialization.Encoding.DER
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    pkcs1 = serialization.PublicFormat.PKCS1
    for encoding in (pem, der):
        for form in (info, pkcs1):
            data = public.public_bytes(encoding, form)
            yield data
            yield data.strip()
    yield json.dumps(public_jwk(RSA, "RS256")).encode()
    yield b""


def no_algorithm() -> Iterator[str]:
    for name in ("none", "None", "NONE", "nOnE", " none", "none\0", "", None, 1, [], ["ES256"], {}):
        for signature in (b"", b"\0", b"\0" * 64):
            yield unsigned({"alg": name, "kid": "ES256", "typ": "JWT"}, signature)
    yield unsigned({"kid": "ES256"})
    yield token().rpartition(".")[0] + "."


def confused_keys() -> Iterator[str]:
    for secret in rsa_public_forms():
        for algorithm in ("HS256", "HS384", "HS512", "hs256"):
            yield by_shared_secret(algorithm, secret)
    yield by_shared_secret("HS256", b"", kid="EdDSA")
    # A key of one kind under the algorithm, or the name, of another.
    for algorithm in ALGORITHMS:
        for kid in ("RS256", "ES256", "ES384", "ES512", "EdDSA"):
            fits = header(algorithm)["kid"]
            if kid != fits:
                yield sign(claims(), header(algorithm, kid=kid), algorithm, private_key(algorithm))
    for algorithm in ("ES256K", "ES521", "EdDSA ", "es256", "RS1", "Ed25519", "dir", "A128KW"):
        text = sign(claims(), {"alg": algorithm, "kid": "ES256"}, "ES256", EC)
        yield text
    # Signed in one way, named as the other that the same key may be used in.
    signed = sign(claims(), header("PS256"), "RS256", RSA)
    yield signed
    yield sign(claims(), header("RS256"), "PS256", RSA)
    yield sign(claims(), header("RS512"), "RS256", RSA)


def foreign_keys() -> Iterator[str]:
    mine = public_jwk(ATTACKER, "ES256")
    for extra in (
        {},
        {"jku": "https://attacker.example/keys"},
        {"x5u": "https://attacker.example/cert.pem"},
        {"jwk": mine},
        {"x5c": [base64.b64encode(b"certificate").decode()]},
        {"x5t": "AAAA"},
        {"kid": "attacker", "jwk": mine},
        {"kid": "../../../dev/null"},
        {"kid": "' OR 1=1 --"},
        {"kid": "https://attacker.example/keys"},
        {"kid": ""},
        {"kid": "k" * 257},
        {"kid": 1},
        {"kid": ["ES256"]},
        {"kid": {"ES256": 1}},
    ):
        yield sign(claims(), header("ES256", **extra), "ES256", ATTACKER)
    yield sign(claims(), {"alg": "ES256", "kid": None}, "ES256", ATTACKER)


def broken_signatures() -> Iterator[str]:
    text, _, signature = token().rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    r, s = int.from_bytes(raw[:32]), int.from_bytes(raw[32:])
    n = P256_ORDER
    # Zero and the order itself are what some checks took for an answer (CVE-2022-21449).
    for pair in ((0, 0), (0, s), (r, 0), (n, s), (r, n), (n, n), (1, 1), (s, r), (r, (s + 1) % n)):
        yield f"{text}.{encode(b''.join(each.to_bytes(32) for each in pair))}"
    yield f"{text}.{encode(EC.sign(text.encode(), ECDSA(SHA256())))}"  # ASN.1 instead of (r, s)
    for other in (raw[:-1], raw + b"\0", b"\0" + raw, raw[:32], raw * 2, b"", b"\xff" * 64):
        yield f"{text}.{encode(other)}"
    for algorithm in ("RS256", "PS256", "EdDSA"):
        text, _, _ = token(algorithm).rpartition(".")
        for other in (b"", b"\0" * 64, b"\0" * 256, b"\1" + b"\0" * 255, b"\xff" * 256):
            yield f"{text}.{encode(other)}"
    yield resigned(sub="admin")
    yield resigned(tenant="other")


def other_spellings() -> Iterator[str]:
    good = token()
    first, second, third = good.split(".")
    yield good + "="
    yield good + "."
    yield good + "\n"
    yield good + ".."
    yield "." + good
    yield good + "." + good
    yield f"{first}..{third}"
    yield f"{first}.{second}"
    for padded in ("=", "==", "===", "%3D"):
        yield f"{first}{padded}.{second}.{third}"
        yield f"{first}.{second}{padded}.{third}"
        yield f"{first}.{second}.{third}{padded}"
    for junk in (" ", "\t", "\r\n", "\0", "!", "*", "+", "/", "\u00e9", "\u200b", "\uff21"):
        yield f"{first}.{second}.{third[:10]}{junk}{third[10:]}"
        yield f"{first}.{second[:10]}{junk}{second[10:]}.{third}"
    # The last character of 64 bytes carries four bits that mean nothing.
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    at = letters.index(third[-1])
    for bits in range(1, 16):
        yield good[:-1] + letters[(at & 0x30) | ((at + bits) & 0x0F)]


def odd_claims() -> Iterator[str]:
    for time in ("exp", "nbf", "iat"):
        for value in ("1", str(NOW + 300), True, [], {}, -1, -0.5, 1e300, 10**400):
            yield es(claims(**{time: value}))
        for text in ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "0x7fffffff", "01"):
            said = json.dumps(claims(**{time: 1})).replace(f'"{time}": 1', f'"{time}": {text}')
            yield es(said)
    yield es(claims(exp=None))
    yield es(claims(exp=NOW - 31))
    yield es(claims(exp=0))
    yield es(claims(exp=1e15))
    yield es(claims(nbf=NOW + 3600))
    yield es(claims(sub=None))
    yield es(claims(iss=None))
    yield es(claims(aud=None))
    for subject in ("", 1, [], {}, ["somebody"], "s" * 1001, True):
        yield es(claims(sub=subject))
    yield es(json.dumps(claims()).replace("somebody", "\\ud800"))
    yield es(claims(cnf={"jkt": "0" * 43}))
    for tenant in ("", "Acme", "acme ", "acme\n", "a/b", "..", "\u0430cme", "a" * 64, 1, ["acme"]):
        yield es(claims(tenant=tenant))
    good = json.dumps(claims())
    yield es(good[:-1] + ', "sub": "admin"}')
    for constant in ("NaN", "Infinity", "-Infinity"):
        yield es(good[:-1] + f', "pad": {constant}}}')
    yield es(good[:-1] + ', "\\u0073ub": "admin"}')
    yield es(good[:-1] + ', "tenant": "other"}')
    yield es('{"realm_access": {"roles": [], "roles": ["mesh-admin"]}, ' + good[1:])
    for content in ("", "null", "[]", '"text"', "1", "{", good + "x", good[:-1], "\ufeff" + good):
        yield es(content)
    yield es(good.encode("utf-16"))
    yield es(good.encode().replace(b"somebody", b"some\xffbody"))
    yield es("[" * 5000)
    yield es('{"a":' * 1000)
    yield es("9" * 5000)
    yield es(b"\0" + good.encode())


def odd_headers() -> Iterator[str]:
    for extra in (
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": "b64", "b64": False},
        {"crit": ["b64"], "b64": False},
        {"b64": True},
        {"b64": False},
        {"zip": "DEF"},
        {"enc": "A128GCM"},
        {"cty": "JWT"},
        {"typ": "JOSE"},
        {"typ": "dpop+jwt"},
        {"typ": "logout+jwt"},
        {"typ": ""},
        {"typ": 1},
        {"typ": ["JWT"]},
    ):
        yield es(**extra)
    yield sign(claims(), '{"alg":"none","alg":"ES256","kid":"ES256"}', "ES256", EC)
    yield sign(claims(), '{"alg":"ES256","kid":"x","kid":"ES256"}', "ES256", EC)
    for head in ("", "[]", "null", "1", '"ES256"', "{", b"\xff\xfe", "[" * 1000):
        yield sign(claims(), head, "ES256", EC)
    yield es(pad="p" * 4000)
    # A token within a token, and an encrypted one.
    yield es(encode(token().encode()))
    yield es(json.dumps(token()))
    yield ".".join(["eyJhbGciOiJkaXIiLCJlbmMiOiJBMTI4R0NNIn0", "", "AAAA", "AAAA", "AAAA"])


def huge() -> Iterator[str]:
    yield es(claims(pad="p" * 8000))
    yield "e" + "y" * 100_000 + ".." + "x" * 1_000_000
    yield "e" + "." * 100_000
    yield token() + "A" * 8192


KINDS = {
    each.__name__: each
    for each in (
        no_algorithm,
        confused_keys,
        foreign_keys,
        broken_signatures,
        other_spellings,
        odd_claims,
        odd_headers,
        huge,
    )
}


@pytest.mark.parametrize("kind", KINDS)
async def test_none_gets_in_and_none_raises(kind: str) -> None:
    world = await ready()
    assert isinstance(world.find(token()), Grant)
    tried = 0
    for text in KINDS[kind]():
        found = world.find(text)
        assert found is None or isinstance(found, MeshError), text[:300]
        tried += 1
    assert tried > 3
    assert world.fetched == 1


async def test_the_shapes_that_are_tried_get_in_without_what_makes_them_bad() -> None:
    world = await ready()
    assert isinstance(world.find(es(jku="https://attacker.example/keys", x5t="AAAA")), Grant)
    assert isinstance(world.find(es(typ="at+JWT")), Grant)
    assert isinstance(world.find(es(typ=None)), Grant)
    assert isinstance(world.find(es(claims(exp=NOW + 299.5, pad="p" * 5000))), Grant)
    assert isinstance(world.find(es(claims(aud=["a", "infermesh"]))), Grant)


async def test_the_other_signature_of_an_es256_token_says_the_same() -> None:
    """Of (r, s), (r, n - s) is a signature as well; it opens nothing that the first does not."""
    world = await ready()
    good = world.find(text := token())
    start, _, signature = text.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    turned = P256_ORDER - int.from_bytes(raw[32:])
    other = world.find(f"{start}.{encode(raw[:32] + turned.to_bytes(32))}")
    assert isinstance(good, Grant) and isinstance(other, Grant)
    assert (good.key_id, good.expires_s) == (other.key_id, other.expires_s)


async def test_a_machines_role_cannot_be_claimed() -> None:
    world = await ready(role_claim="role", roles={"mesh-admin": "admin"}, default_role=None)
    for role in ("node", "join", "ROLE_NODE", "admin", 4, 5, "mesh-admin ", ["node"], None):
        assert isinstance(world.find(token(role=role)), MeshError), role


@pytest.fixture(scope="module")
async def world() -> World:
    return await ready()


GOOD = tuple(token(algorithm) for algorithm in ("RS256", "ES256", "EdDSA"))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GOOD), st.data())
async def test_a_changed_token_is_refused(world: World, good: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 20)))
    put = data.draw(st.text(max_size=20) | st.sampled_from(["=", ".", "..", "A", "\0", "ey"]))
    changed = good[:start] + put + good[end:]
    if changed not in GOOD:
        assert not isinstance(world.find(changed), Grant)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
CLAIMS = st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat", "tenant", "realm_access"])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(CLAIMS, JSON, min_size=1), st.dictionaries(st.text(max_size=5), JSON))
async def test_signed_nonsense_never_raises(
    world: World, said: dict[str, Any], head: dict[str, Any]
) -> None:
    text = sign({**claims(), **said}, {**head, **header("ES256")}, "ES256", EC)
    found = world.find(text)
    if isinstance(found, Grant):
        assert found.tenant and found.key_id.startswith("oidc:acme:")


def test_the_samples_are_signed_as_they_say() -> None:
    text, _, signature = token("RS256").rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    assert get_default_algorithms()["RS256"].verify(text.encode(), RSA.public_key(), raw)
