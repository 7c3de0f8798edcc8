"""X.509 certificates of the mesh: its authority, the leaves that it signs, and requests for them.

A leaf is good for a day and says whom it is for twice, as a SPIFFE id and as a DNS name (see
`services.kit.tls`). The form is RFC 5280's; keys are on the curve P-256.
"""

import contextlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.kit import tls
from services.kit.certificate_reading import CertificateError

CA_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(hours=24)

BACKDATE = timedelta(minutes=5)
"""By how much a certificate is good before it is made: clocks differ."""

_RSA_BITS = range(2048, 4097)
_CURVES = (ec.SECP256R1, ec.SECP384R1)


@dataclass(frozen=True)
class Issued:
    """A certificate, and what belongs to it, as PEM.

    Attributes:
        certificate: The certificate.
        key: Its private key, unencrypted; empty where only its owner has it.
    """

    certificate: bytes
    key: bytes


def make_key() -> bytes:
    """Returns a new private key as PEM."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def make_request(key: bytes, name: str) -> bytes:
    """Returns a request (CSR) for a key, signed with it, as PEM.

    Args:
        key: The private key as PEM.
        name: Whom the certificate is to be for. The issuer decides by what it knows itself.
    """
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(name))
    private = serialization.load_pem_private_key(key, None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise CertificateError("the key is not on an elliptic curve")
    return builder.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class Authority:
    """Signs leaves.

    Args:
        certificate: Its certificate as PEM; of several the first one.
        key: That one's private key as PEM.

    Raises:
        CertificateError: They are no authority's, or do not belong together.
    """

    def __init__(self, certificate: bytes, key: bytes) -> None:
        try:
            self._certificate = x509.load_pem_x509_certificate(certificate)
            private = serialization.load_pem_private_key(key, None)
            limits = self._certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        except (ValueError, TypeError, x509.ExtensionNotFound) as error:
            raise CertificateError(f"not an authority's certificate and key: {error}") from None
        if not isinstance(private, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise CertificateError("the authority's key must be EC or RSA")
        if not limits.value.ca or private.public_key() != self._certificate.public_key():
            raise CertificateError("the certificate is no authority's, or the key not its own")
        self._key = private

    @staticmethod
    def make(life: timedelta = CA_LIFE, now: datetime | None = None) -> Issued:
        """Returns a new authority's certificate and key."""
        now = now or datetime.now(UTC)
        private = ec.generate_private_key(ec.SECP256R1())
        public = private.public_key()
        key_id = x509.SubjectKeyIdentifier.from_public_key(public).digest.hex()
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, tls.TRUST_DOMAIN),
                x509.NameAttribute(NameOID.COMMON_NAME, f"{tls.TRUST_DOMAIN} CA {key_id[:8]}"),
            ]
        )
        certificate = (
            _begun(public, now, life)
            .subject_name(subject)
            .issuer_name(subject)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(private, hashes.SHA256())
        )
        return Issued(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(private))

    def issue(self, name: str, life: timedelta = LEAF_LIFE, now: datetime | None = None) -> Issued:
        """Returns a new leaf for a part of the mesh, with a key of its own.

        Args:
            name: `envoy`, `service/NAME` or `node/ID`.
            life: How long it is good.
            now: The time.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        return Issued(self._sign(key.public_key(), name, life, now), _key_pem(key))

    def issue_front(
        self, hosts: Sequence[str], life: timedelta, now: datetime | None = None
    ) -> Issued:
        """Returns a new leaf for the front door, which opens nothing inside the mesh.

        Args:
            hosts: DNS names and IP addresses, one at least.
            life: How long it is good.
            now: The time.

        Raises:
            CertificateError: A host is neither a name nor an address.
        """
        if not hosts:
            raise CertificateError("the front door needs a host name")
        key = ec.generate_private_key(ec.SECP256R1())
        sans = x509.SubjectAlternativeName([_host(each) for each in hosts])
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        certificate = self._leaf(key.public_key(), hosts[0], sans, usage, life, now)
        return Issued(certificate, _key_pem(key))

    def sign_request(
        self, request: bytes, name: str, life: timedelta = LEAF_LIFE, now: datetime | None = None
    ) -> bytes:
        """Returns a leaf for the key of a request, as PEM. What else the request says is ignored.

        Raises:
            CertificateError: The request is none, its signature is wrong, or its key is weak.
        """
        try:
            read = x509.load_pem_x509_csr(request)
            public = read.public_key()
            is_signed = read.is_signature_valid
        except (ValueError, InvalidSignature, TypeError) as error:
            raise CertificateError(f"the request cannot be read: {error}") from None
        except UnsupportedAlgorithm as error:
            raise CertificateError(f"the request has a key of another kind: {error}") from None
        if not is_signed:
            raise CertificateError("the request is not signed with its key")
        if isinstance(public, ec.EllipticCurvePublicKey):
            if not isinstance(public.curve, _CURVES):
                raise CertificateError("the key's curve is not P-256 or P-384")
        elif not isinstance(public, rsa.RSAPublicKey) or public.key_size not in _RSA_BITS:
            raise CertificateError("the key is neither EC nor RSA of 2048 to 4096 bits")
        return self._sign(public, name, life, now)

    def _sign(
        self,
        public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
        name: str,
        life: timedelta,
        now: datetime | None,
    ) -> bytes:
        sans = x509.SubjectAlternativeName(
            [x509.UniformResourceIdentifier(tls.uri_of(name)), x509.DNSName(tls.dns_of(name))]
        )
        usage = x509.ExtendedKeyUsage(
            [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        )
        return self._leaf(public, name, sans, usage, life, now)

    def _leaf(
        self,
        public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
        name: str,
        sans: x509.SubjectAlternativeName,
        usage: x509.ExtendedKeyUsage,
        life: timedelta,
        now: datetime | None,
    ) -> bytes:
        # A leaf that outlives its authority is good for nothing, and would not be renewed in time.
        begin = now or datetime.now(UTC)
        life = min(life, self._certificate.not_valid_after_utc - begin)
        if life <= timedelta(0):
            raise CertificateError("the authority has expired")
        certificate = (
            _begun(public, begin, life)
            .subject_name(_subject(name))
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(usage, critical=False)
            .add_extension(sans, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def _begun(
    public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str) -> x509.Name:
    # For people; a common name has 64 characters at most.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name.rpartition("/")[2][:64])])


def _host(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):  # it is a name
        return x509.IPAddress(ipaddress.ip_address(host))
    try:
        encoded = host.encode("idna").decode()
        if not encoded.replace("-", "").replace(".", "").replace("*", "").isalnum():
            raise CertificateError(f"`{host}` is neither a host name nor an IP address")
        return x509.DNSName(encoded)
    except UnicodeError:
        raise CertificateError(f"`{host}` is neither a host name nor an IP address") from None


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
