"""TLS inside the mesh: who a peer is, whom a server admits, and the files that say so.

A part's files are `ca.pem` (whom it trusts), `cert.pem` (what it shows, its issuers after it) and
`key.pem`, in a folder of its own. They may change at any time; a handshake sees whole sets only.
"""

import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

TRUST_DOMAIN = "infermesh"

ENVOY = "envoy"
"""The name of Envoy in its certificate."""

_URI_PREFIX = f"spiffe://{TRUST_DOMAIN}/"
_DNS_SUFFIX = f".{TRUST_DOMAIN}.internal"

CA_FILE, CERTIFICATE_FILE, KEY_FILE = "ca.pem", "cert.pem", "key.pem"
_FILES = (CA_FILE, CERTIFICATE_FILE, KEY_FILE)

_ALPN = ["h2"]


def service(name: str) -> str:
    """Returns a service's name as certificates carry it. Example: `service/auth`."""
    return f"service/{name}"


def node(node_id: str) -> str:
    """Returns a node's name as certificates carry it. Example: `node/gpu-1`."""
    return f"node/{node_id}"


def uri_of(name: str) -> str:
    """Returns the SPIFFE id, by which servers know their peers."""
    return _URI_PREFIX + name


def dns_of(name: str) -> str:
    """Returns the DNS name, by which gRPC's clients know their servers; nothing resolves it.

    Example: `auth.service.infermesh.internal`.
    """
    return ".".join(reversed(name.split("/", 1))) + _DNS_SUFFIX


def version_of(files: Iterable[Path]) -> object:
    """Returns something that differs once a file has changed; None while one is missing."""
    try:
        stats = [each.stat() for each in files]
    except OSError:
        return None
    return [(each.st_mtime_ns, each.st_ino, each.st_size) for each in stats]


class Pem(NamedTuple):
    """A folder's files as they are."""

    ca: bytes
    certificate: bytes
    key: bytes


class TlsFolder:
    """A folder with a part's files.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def version(self) -> object:
        """Returns something that differs once a file has changed; None while one is missing."""
        return version_of([self.path / name for name in _FILES])

    def read(self) -> Pem:
        """Returns what the files hold.

        Raises:
            OSError: A file cannot be read, or they do not belong together.
        """
        version = self.version()
        pem = Pem(*((self.path / name).read_bytes() for name in _FILES))
        self.server_context()
        if self.version() != version:
            raise OSError(f"the files in {self.path} change at this moment")
        return pem

    def server_context(self) -> ssl.SSLContext:
        """Returns a context that wants a certificate of a client, in TLS 1.3.

        Raises:
            OSError: A file cannot be read, or they do not belong together (`ssl.SSLError`).
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Both sides are the mesh's own.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(_ALPN)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.path / CA_FILE)
        context.load_cert_chain(self.path / CERTIFICATE_FILE, self.path / KEY_FILE)
        # A session that is resumed is not verified again: it would outlive its certificate.
        context.num_tickets = 0
        return context

    def client_context(self) -> ssl.SSLContext:
        """Returns a context that shows the certificate to a server of the mesh, in TLS 1.3.

        Raises:
            OSError: A file cannot be read, or they do not belong together (`ssl.SSLError`).
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(_ALPN)
        context.load_verify_locations(self.path / CA_FILE)
        context.load_cert_chain(self.path / CERTIFICATE_FILE, self.path / KEY_FILE)
        return context


class Allowed:
    """Whom a server admits.

    Args:
        patterns: Names as in certificates; `service/*` stands for all services.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        patterns = tuple(patterns)
        self._names = frozenset(each for each in patterns if not each.endswith("/*"))
        self._kinds = tuple(each[:-1] for each in patterns if each.endswith("/*"))

    def __contains__(self, name: str) -> bool:
        return name in self._names or name.startswith(self._kinds)


class ServerTls(NamedTuple):
    """How a server does TLS.

    Attributes:
        folder: Its files.
        allowed: Whom it admits.
    """

    folder: TlsFolder
    allowed: Allowed


def peer_name(certificate: Mapping[str, Any] | None) -> str:
    """Returns whom a certificate is for; empty where it does not say so once and plainly.

    Args:
        certificate: As `ssl.SSLSocket.getpeercert` returns it.
    """
    names = (certificate or {}).get("subjectAltName", ())
    uris = [value for kind, value in names if kind == "URI"]
    # SPIFFE allows one id in a certificate: of two, each side could pick another.
    if len(uris) != 1 or not uris[0].startswith(_URI_PREFIX):
        return ""
    return str(uris[0].removeprefix(_URI_PREFIX))
