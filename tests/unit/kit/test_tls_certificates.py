"""What the mesh's certificates say, and what the authority signs."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from services.kit import certificates, tls
from services.kit.certificate_reading import CertificateError, check_pair, read
from services.kit.certificates import Authority

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(hours=24)
CA = Authority.make(now=NOW)
AUTHORITY = Authority(CA.certificate, CA.key)


@pytest.mark.parametrize("name", [tls.ENVOY, tls.service("auth"), tls.node("gpu_1.rack-2")])
def test_a_leaf_says_whom_it_is_for_and_for_a_day(name: str) -> None:
    leaf = AUTHORITY.issue(name, now=NOW)
    shown = read(leaf.certificate)
    assert shown.name == name
    assert shown.hosts == (tls.dns_of(name),)
    assert (shown.end, shown.begin) == (NOW + DAY, NOW - timedelta(minutes=5))
    assert not shown.is_ca
    check_pair(leaf.certificate, leaf.key)
    assert certificates.make_key() != certificates.make_key()


def test_names_as_uris_and_hosts() -> None:
    assert tls.uri_of("node/gpu-1") == "spiffe://infermesh/node/gpu-1"
    assert tls.dns_of("node/gpu-1") == "gpu-1.node.infermesh.internal"
    assert tls.dns_of("envoy") == "envoy.infermesh.internal"


def test_leaves_pass_a_strict_verifier() -> None:
    leaf = x509.load_pem_x509_certificate(AUTHORITY.issue("service/auth", now=NOW).certificate)
    store = Store([x509.load_pem_x509_certificate(CA.certificate)])
    verifier = (
        PolicyBuilder()
        .store(store)
        .time(NOW)
        .build_server_verifier(x509.DNSName("auth.service.infermesh.internal"))
    )
    assert len(verifier.verify(leaf, [])) == 2


def test_the_front_doors_leaf_opens_nothing_inside() -> None:
    leaf = AUTHORITY.issue_front(["mesh.example.com", "*.example.org", "10.0.0.1", "::1"], DAY, NOW)
    shown = read(leaf.certificate)
    assert shown.name == ""
    assert shown.hosts == ("mesh.example.com", "*.example.org", "10.0.0.1", "::1")
    usage = x509.load_pem_x509_certificate(leaf.certificate).extensions.get_extension_for_class(
        x509.ExtendedKeyUsage
    )
    assert list(usage.value) == [ExtendedKeyUsageOID.SERVER_AUTH]


@pytest.mark.parametrize("host", ["", "a b", "https://a", "a/b", "é" * 80, "a..b"])
def test_hosts_that_are_none(host: str) -> None:
    with pytest.raises(CertificateError):
        AUTHORITY.issue_front([host], DAY, NOW)
    with pytest.raises(CertificateError):
        AUTHORITY.issue_front([], DAY, NOW)


def test_a_request_is_signed_for_the_name_that_the_issuer_says() -> None:
    key = certificates.make_key()
    signed = AUTHORITY.sign_request(certificates.make_request(key, "admin"), "node/a", now=NOW)
    assert read(signed).name == "node/a"
    check_pair(signed, key)


def request(key: object, names: list[x509.GeneralName] | None = None) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "envoy")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]


def test_names_in_a_request_are_ignored() -> None:
    wished = [
        x509.UniformResourceIdentifier("spiffe://infermesh/envoy"),
        x509.DNSName("auth.service.infermesh.internal"),
    ]
    key = ec.generate_private_key(ec.SECP256R1())
    shown = read(AUTHORITY.sign_request(request(key, wished), "node/a", now=NOW))
    assert (shown.name, shown.hosts) == ("node/a", ("a.node.infermesh.internal",))


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 1024),
        ec.generate_private_key(ec.SECP256K1()),
    ],
    ids=["ed25519", "rsa 1024", "secp256k1"],
)
def test_weak_and_odd_keys_are_refused(key: object) -> None:
    with pytest.raises(CertificateError):
        AUTHORITY.sign_request(request(key), "node/a", now=NOW)


def test_broken_requests_are_refused() -> None:
    good = request(ec.generate_private_key(ec.SECP256R1()))
    der = bytearray(x509.load_pem_x509_csr(good).public_bytes(serialization.Encoding.DER))
    der[-5] ^= 1  # in the signature
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    for broken in (forged, b"", b"-----BEGIN", good[:100], CA.certificate):
        with pytest.raises(CertificateError):
            AUTHORITY.sign_request(broken, "node/a", now=NOW)


def test_no_leaf_outlives_its_authority() -> None:
    short = Authority.make(timedelta(hours=2), NOW)
    authority = Authority(short.certificate, short.key)
    assert read(authority.issue("envoy", now=NOW).certificate).end == NOW + timedelta(hours=2)
    with pytest.raises(CertificateError, match="expired"):
        authority.issue("envoy", now=NOW + timedelta(hours=3))


def test_what_is_no_authority() -> None:
    leaf = AUTHORITY.issue("envoy", now=NOW)
    other = Authority.make(now=NOW)
    pairs = [
        (leaf.certificate, leaf.key),
        (CA.certificate, other.key),
        (CA.certificate, b"x"),
        (b"", CA.key),
    ]
    for certificate, key in pairs:
        with pytest.raises(CertificateError):
            Authority(certificate, key)


def test_a_leaf_is_due_after_two_thirds_of_its_life() -> None:
    shown = read(AUTHORITY.issue("envoy", now=NOW).certificate)
    due = shown.begin + (shown.end - shown.begin) * 2 / 3
    assert not shown.is_due(due - timedelta(seconds=1))
    assert shown.is_due(due)


def test_pairs_that_are_none() -> None:
    leaf, other = AUTHORITY.issue("envoy", now=NOW), AUTHORITY.issue("envoy", now=NOW)
    for certificate, key in (
        (leaf.certificate, other.key),
        (leaf.certificate, b""),
        (b"", leaf.key),
        (CA.certificate, CA.key),  # names no host
    ):
        with pytest.raises(CertificateError):
            check_pair(certificate, key)
