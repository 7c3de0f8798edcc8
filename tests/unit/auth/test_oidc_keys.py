"""Which keys of an issuer's are used."""

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from oidc_issuer import public_jwk
from services.auth.oidc import keys
from services.auth.oidc.parsing import RefusedTokenError, parse
from unit.auth.oidc_samples import ALGORITHMS, private_key, token

ALL = frozenset(ALGORITHMS)
RSA, EC, ED = private_key("RS256"), private_key("ES256"), private_key("EdDSA")


def good_for(*jwks: Any, allowed: frozenset[str] = ALL) -> list[tuple[str, ...]]:
    return [key.algorithms for key in keys.read({"keys": list(jwks)}, allowed)]


def is_refused(jwk: Any) -> bool:
    """Says whether a key is passed over, and that one next to it is not."""
    return good_for(jwk, public_jwk(ED, "good")) == [("EdDSA",)]


def test_a_key_is_good_for_its_kind_and_what_it_is_named_for() -> None:
    assert good_for(public_jwk(RSA, "a")) == [ALGORITHMS[:6]]
    assert good_for(public_jwk(RSA, "a", alg="PS384")) == [("PS384",)]
    assert good_for(public_jwk(EC, None)) == [("ES256",)]
    assert good_for(public_jwk(private_key("ES512"), "a")) == [("ES512",)]
    only = frozenset({"RS256", "ES384"})
    assert good_for(public_jwk(RSA, "a"), public_jwk(EC, "b"), allowed=only) == [("RS256",)]


@pytest.mark.parametrize("bits", [1024, 2047])
def test_short_rsa_keys_are_refused(bits: int) -> None:
    short = rsa.generate_private_key(65537, bits)
    assert is_refused(public_jwk(short, "short"))


def test_other_rsa_keys_that_are_refused() -> None:
    jwk = public_jwk(RSA, "a")
    for exponent in ("AQ", "Ag", "AAAA", "____________", "AQAC"):
        assert is_refused({**jwk, "e": exponent}), exponent
    assert is_refused({**jwk, "n": "_" * 2000})
    assert is_refused({**jwk, "n": ""})
    assert is_refused({**jwk, "n": 1})


def test_keys_for_other_purposes_and_of_other_kinds_are_passed_over() -> None:
    jwk = public_jwk(EC, "a")
    for changed in (
        {"use": "enc"},
        {"use": 1},
        {"key_ops": ["sign"]},
        {"key_ops": 1},
        {"alg": "HS256"},
        {"alg": "none"},
        {"alg": "ES384"},
        {"alg": "RS256"},
        {"alg": 1},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "RSA"},
        {"kty": None},
        {"kty": ["EC"]},
        {"crv": "secp256k1"},
        {"crv": "P-384"},
        {"crv": "Ed25519"},
        {"x": "A" * 43},
        {"x": None},
        {"y": "!"},
        {"kid": ""},
        {"kid": 1},
        {"kid": "k" * 257},
    ):
        assert is_refused({**jwk, **changed}), changed
    for no_key in (None, [], "key", 1, {}):
        assert is_refused(no_key)
    x448 = OKPAlgorithm.to_jwk(ed448.Ed448PrivateKey.generate().public_key(), as_dict=True)
    assert is_refused({**x448, "kid": "a"})
    assert is_refused({"kty": "oct", "kid": "a", "k": "c2VjcmV0", "alg": "HS256"})


@pytest.mark.parametrize(
    "private",
    [
        RSAAlgorithm.to_jwk(RSA, as_dict=True),
        ECAlgorithm.to_jwk(EC, as_dict=True),
        OKPAlgorithm.to_jwk(private_key("EdDSA"), as_dict=True),
    ],
)
def test_a_private_key_that_everybody_can_read_is_refused(private: dict[str, Any]) -> None:
    private.pop("key_ops", None)
    assert is_refused({**private, "kid": "a"})


@pytest.mark.parametrize(
    "document",
    [
        *({}, {"keys": None}, {"keys": {}}, {"keys": "keys"}, {"keys": []}, {"keys": [1]}),
        {"keys": [public_jwk(ED, str(number)) for number in range(65)]},
    ],
)
def test_what_is_no_key_set(document: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="key set"):
        keys.read(document, ALL)


def test_a_point_that_is_not_on_the_curve_is_refused() -> None:
    jwk = public_jwk(ec.generate_private_key(ec.SECP256R1()), "a")
    assert is_refused({**jwk, "y": jwk["x"]})


def test_of_two_keys_of_one_name_the_first_counts() -> None:
    first, second = public_jwk(EC, "a"), public_jwk(ec.generate_private_key(ec.SECP256R1()), "a")
    found = keys.KeySet()
    made = keys.read({"keys": [first, second]}, ALL)
    found.replace(made, 10.0)
    assert found.find("a", "ES256") is made[0]
    # Of different kinds both can be meant.
    found.replace(keys.read({"keys": [first, public_jwk(RSA, "a")]}, ALL), 10.0)
    assert found.find("a", "ES256") is made[0]
    assert found.find("a", "RS256") is not None
    assert found.find("a", "EdDSA") is None


def test_keys_that_stay_are_the_same_and_those_that_go_end() -> None:
    found = keys.KeySet()
    stays, goes = public_jwk(EC, "a"), public_jwk(RSA, "b")
    found.replace(keys.read({"keys": [stays, goes]}, ALL), 10.0)
    kept, gone = found.find("a", "ES256"), found.find("b", "RS256")
    found.replace(keys.read({"keys": [stays]}, ALL), 20.0)
    assert kept is not None and gone is not None
    assert found.find("a", "ES256") is kept
    assert (kept.until_s, gone.until_s) == (20.0, 0.0)
    # The name alone does not make it the same.
    found.replace(keys.read({"keys": [{**goes, "kid": "a"}]}, ALL), 30.0)
    assert found.find("a", "ES256") is None
    assert kept.until_s == 0.0


def test_a_key_checks_what_it_is_good_for_and_nothing_else() -> None:
    (key,) = keys.read({"keys": [public_jwk(RSA, "a", alg="PS384")]}, ALL)
    key.verify(parse(token("PS384")))
    for algorithm in ("RS256", "PS256", "ES256", "EdDSA"):
        with pytest.raises(RefusedTokenError) as caught:
            key.verify(parse(token(algorithm)))
        assert caught.value.why == "algorithm"
