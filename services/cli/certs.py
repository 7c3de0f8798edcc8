"""The mesh's own authority and the certificates that it made, in one folder.

FOLDER/ca.pem                   for callers of the front door, safe to give away
FOLDER/ca/ca.pem, ca-key.pem    the authority; auth signs nodes' certificates with it
FOLDER/front/                   the front door's: cert.pem, key.pem
FOLDER/envoy/                   a part's: ca.pem, cert.pem, key.pem
FOLDER/service/auth/
FOLDER/node/gpu-1/
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.kit import certificates, tls
from services.kit.certificate_reading import CertificateError, Shown, read
from services.kit.certificates import LEAF_LIFE, Authority, Issued
from services.kit.tls_files import write_folder

FRONT = "front"
CA_KEY_FILE = "ca-key.pem"

_NAME = re.compile(r"envoy|(service|node)/[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class CertsError(Exception):
    """What is asked for cannot be done; the message says why, for a person."""


@dataclass(frozen=True)
class Leaf:
    """A certificate in the folder, and what it says."""

    name: str
    folder: Path
    shown: Shown


class Certs:
    """The folder.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def ca_dir(self) -> Path:
        """The authority's folder."""
        return self.path / "ca"

    @property
    def ca_file(self) -> Path:
        """The authority's certificate, for callers of the front door."""
        return self.path / tls.CA_FILE

    def folder(self, name: str) -> Path:
        """Returns the folder of a part, or of the front door."""
        return self.path / name

    def init(self) -> bool:
        """Makes the authority; returns whether there was none.

        Raises:
            CertsError: The files of another kind are in the way.
        """
        if (self.ca_dir / CA_KEY_FILE).exists():
            self._authority()
            return False
        made = Authority.make()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_folder(self.ca_dir, {tls.CA_FILE: made.certificate, CA_KEY_FILE: made.key})
        new = self.ca_file.with_suffix(".new")
        new.write_bytes(made.certificate)
        new.replace(self.ca_file)
        return True

    def issue(self, name: str, life: timedelta = LEAF_LIFE) -> Shown:
        """Gives a part a new certificate.

        Raises:
            CertsError: There is no authority, or no part has such a name.
        """
        if _NAME.fullmatch(name) is None:
            raise CertsError(f"{name} is none of front, envoy, service/NAME and node/ID.")
        authority = self._authority()
        try:
            return self._write(name, authority.issue(name, life), with_ca=True)
        except CertificateError as error:
            raise CertsError(f"{name}: {error}.") from None

    def issue_front(self, hosts: Sequence[str], life: timedelta = LEAF_LIFE) -> Shown:
        """Gives the front door a new certificate.

        Raises:
            CertsError: There is no authority, or a host is neither a name nor an address.
        """
        authority = self._authority()
        try:
            return self._write(FRONT, authority.issue_front(hosts, life), with_ca=False)
        except CertificateError as error:
            raise CertsError(f"{FRONT}: {error}.") from None

    def ensure(self, name: str, hosts: Sequence[str] = ()) -> None:
        """Makes sure that a certificate is there, is of this authority, and not due."""
        try:
            shown = self._read(name)
        except CertsError:
            shown = None
        is_good = shown is not None and not shown.is_due(datetime.now(UTC))
        is_ours = shown is not None and shown.issuer_key_id == self._shown_ca().key_id
        if name == FRONT:
            if not (is_good and is_ours and shown is not None and set(hosts) <= set(shown.hosts)):
                self.issue_front(hosts)
        elif not (is_good and is_ours):
            self.issue(name)

    def renew(self, *, everything: bool = False) -> list[Leaf]:
        """Renews the certificates that are due, for as long as they were good before.

        Args:
            everything: Those that are not due too.

        Raises:
            CertsError: There is no authority, or a certificate cannot be read.
        """
        self._authority()
        now = datetime.now(UTC)
        renewed = []
        for leaf in self.leaves():
            if not everything and not leaf.shown.is_due(now):
                continue
            life = leaf.shown.end - leaf.shown.begin - certificates.BACKDATE
            if leaf.name == FRONT:
                shown = self.issue_front(leaf.shown.hosts, life)
            else:
                shown = self.issue(leaf.name, life)
            renewed.append(Leaf(leaf.name, leaf.folder, shown))
        return renewed

    def leaves(self) -> Iterator[Leaf]:
        """Yields all certificates but the authority's.

        Raises:
            CertsError: One cannot be read.
        """
        patterns = (FRONT, tls.ENVOY, "service/*", "node/*")
        for folder in sorted(each for pattern in patterns for each in self.path.glob(pattern)):
            name = folder.relative_to(self.path).as_posix()
            if (folder / tls.CERTIFICATE_FILE).exists():
                yield Leaf(name, folder, self._read(name))

    def authority(self) -> Leaf:
        """Returns the authority's certificate.

        Raises:
            CertsError: There is none.
        """
        return Leaf("ca", self.ca_dir, self._shown_ca())

    def _shown_ca(self) -> Shown:
        return _shown(self.ca_dir / tls.CA_FILE)

    def _read(self, name: str) -> Shown:
        return _shown(self.folder(name) / tls.CERTIFICATE_FILE)

    def _authority(self) -> Authority:
        try:
            return Authority(
                (self.ca_dir / tls.CA_FILE).read_bytes(), (self.ca_dir / CA_KEY_FILE).read_bytes()
            )
        except FileNotFoundError:
            raise CertsError(
                f"There is no authority in {self.path}. Make one: infermesh certs init"
            ) from None
        except (OSError, CertificateError) as error:
            raise CertsError(f"The authority in {self.ca_dir} cannot be used: {error}.") from None

    def _write(self, name: str, issued: Issued, *, with_ca: bool) -> Shown:
        files = {tls.CERTIFICATE_FILE: issued.certificate, tls.KEY_FILE: issued.key}
        if with_ca:
            files[tls.CA_FILE] = (self.ca_dir / tls.CA_FILE).read_bytes()
        try:
            write_folder(self.folder(name), files)
        except OSError as error:
            raise CertsError(f"{self.folder(name)} cannot be written: {error}.") from None
        return read(issued.certificate)


def _shown(path: Path) -> Shown:
    try:
        return read(path.read_bytes())
    except (OSError, CertificateError) as error:
        raise CertsError(f"{path} cannot be read: {error}.") from None
