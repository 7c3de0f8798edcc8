"""What a certificate says, and whether a key is its own."""

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from services.kit import tls

RENEW_AT = 2 / 3
"""Leaves are renewed once this share of their life is over."""


class CertificateError(ValueError):
    """A certificate, key or request is not what it should be; the message says why."""


@dataclass(frozen=True)
class Shown:
    """What a certificate says, for people and for renewal.

    Attributes:
        name: Whom it is for in the mesh; empty for others, such as the front door's.
        hosts: Its DNS names and addresses.
        serial: Its serial number in hexadecimal.
        begin: From when on it is good.
        end: Until when.
        is_ca: Whether it is an authority's.
        key_id: Which key it is for, in hexadecimal; empty where it does not say.
        issuer_key_id: Which key signed it; empty where it does not say.
    """

    name: str
    hosts: tuple[str, ...]
    serial: str
    begin: datetime
    end: datetime
    is_ca: bool
    key_id: str
    issuer_key_id: str

    def is_due(self, now: datetime) -> bool:
        """Says whether it is to be renewed."""
        return now >= self.begin + (self.end - self.begin) * RENEW_AT


def read(certificate: bytes) -> Shown:
    """Reads a certificate from PEM; of several the first one.

    Raises:
        CertificateError: It is none.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate)
        extensions = found.extensions
    except ValueError as error:
        raise CertificateError(f"not a certificate: {error}") from None
    sans: x509.SubjectAlternativeName | None = None
    is_ca = False
    key_id = issuer_key_id = ""
    for extension in extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            sans = extension.value
        elif isinstance(extension.value, x509.BasicConstraints):
            is_ca = extension.value.ca
        elif isinstance(extension.value, x509.SubjectKeyIdentifier):
            key_id = extension.value.digest.hex()
        elif isinstance(extension.value, x509.AuthorityKeyIdentifier):
            issuer_key_id = (extension.value.key_identifier or b"").hex()
    uris = sans.get_values_for_type(x509.UniformResourceIdentifier) if sans else []
    names = [("URI", uri) for uri in uris]
    hosts = (
        [
            *sans.get_values_for_type(x509.DNSName),
            *map(str, sans.get_values_for_type(x509.IPAddress)),
        ]
        if sans
        else []
    )
    return Shown(
        name=tls.peer_name({"subjectAltName": names}),
        hosts=tuple(hosts),
        serial=f"{found.serial_number:x}",
        begin=found.not_valid_before_utc,
        end=found.not_valid_after_utc,
        is_ca=is_ca,
        key_id=key_id,
        issuer_key_id=issuer_key_id,
    )


def check_pair(certificate: bytes, key: bytes) -> None:
    """Checks that a private key belongs to a certificate, and that it has a host name.

    Raises:
        CertificateError: It does not.
    """
    try:
        public = x509.load_pem_x509_certificate(certificate).public_key()
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError(f"not a certificate and its key: {error}") from None
    if private.public_key() != public:
        raise CertificateError("the key is not the certificate's")
    if not read(certificate).hosts:
        raise CertificateError("the certificate names no host")
