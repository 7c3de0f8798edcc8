"""What the embedded mesh's parts are told about TLS, and the certificates that they have."""

import asyncio
import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.cli.certs import FRONT, Certs, CertsError
from services.cli.envoy_config import EnvoyTls
from services.kit import tls
from services.kit.certificate_reading import CertificateError, check_pair, read
from services.kit.tls_files import write_folder

log = logging.getLogger(__name__)

SUPERVISOR = "supervisor"
"""The service as which the command line asks parts for their health."""

_CHECK_S = 60.0
_BROUGHT = "brought"
_HSTS = "max-age=31536000"


@dataclass(frozen=True)
class TlsOptions:
    """What a person wants of TLS.

    Attributes:
        mesh: Whether all parts speak TLS with each other, and the front door too.
        certificate: The front door's certificate chain that the person brought, as PEM.
        key: Its private key.
        hosts: Under which names and addresses callers reach the front door, where its certificate
            is the mesh's own; those of this machine are among them anyway.
    """

    mesh: bool = False
    certificate: Path | None = None
    key: Path | None = None
    hosts: tuple[str, ...] = ()

    @property
    def front(self) -> bool:
        """Whether the front door speaks TLS."""
        return self.mesh or self.certificate is not None


class StackTls:
    """TLS in the embedded mesh; does nothing where nobody asked for it.

    Args:
        options: What a person wants.
        path: The folder of the certificates.
        host: The address of the front door.
    """

    def __init__(self, options: TlsOptions, path: Path, host: str) -> None:
        self._options = options
        self._certs = Certs(path)
        own = ("localhost", "127.0.0.1", "::1", socket.gethostname())
        here = () if host in ("0.0.0.0", "::") else (host,)
        self._hosts = tuple(dict.fromkeys((*own, *here, *options.hosts)))
        self._names: list[str] = []

    def prepare(self, services: Sequence[str], nodes: Sequence[str]) -> None:
        """Makes sure that every part has what it needs.

        Raises:
            CertsError: It cannot be made, or what the person brought is no certificate and key.
        """
        if self._options.mesh:
            self._certs.init()
            self._names = [
                tls.ENVOY,
                *map(tls.service, (*services, SUPERVISOR)),
                *map(tls.node, nodes),
            ]
        self.renew()

    def renew(self) -> list[str]:
        """Renews what is due, and takes over what the person has renewed; returns the names.

        Raises:
            CertsError: It cannot be done.
        """
        before = self._versions()
        for name in self._names:
            self._certs.ensure(name)
        if self._options.certificate is not None:
            self._take_over()
        elif self._options.mesh:
            self._certs.ensure(FRONT, self._hosts)
        after = self._versions()
        return [name for name, version in after.items() if before[name] != version]

    async def keep(self) -> None:
        """Renews for ever. Parts take renewed files without a restart."""
        while self._options.front:
            await asyncio.sleep(_CHECK_S)
            try:
                renewed = await asyncio.to_thread(self.renew)
            except CertsError as error:
                # What there is stays good for a third of its life.
                log.warning("certificates cannot be renewed", extra={"error": str(error)})
                continue
            if renewed:
                log.info("certificates renewed", extra={"names": renewed})

    def of_service(self, name: str) -> Mapping[str, str]:
        """Returns a service's settings."""
        settings = self._of(tls.service(name))
        if self._options.mesh and name == "auth":
            return {**settings, "CA_DIR": str(self._certs.ca_dir)}
        return settings

    def of_node(self, node_id: str) -> Mapping[str, str]:
        """Returns a node's settings."""
        settings = dict(self._of(tls.node(node_id)))
        if self._options.certificate is not None:
            # It is reached by an address that its certificate need not know: pinned instead.
            shown = read(self._options.certificate.read_bytes())
            settings["MESH_CA"] = str(self._front_folder() / tls.CERTIFICATE_FILE)
            settings["MESH_NAME"] = shown.hosts[0].replace("*", "infermesh")
        elif self._options.mesh:
            settings["MESH_CA"] = str(self._certs.ca_file)
        return settings

    def of_envoy(self) -> EnvoyTls:
        """Returns where Envoy finds its files."""
        return EnvoyTls(
            front=self._front_folder() if self._options.front else None,
            mesh=self._certs.folder(tls.ENVOY) if self._options.mesh else None,
        )

    @property
    def hsts(self) -> str:
        """What browsers are told: to come by https only, where the certificate is a real one."""
        return _HSTS if self._options.certificate is not None else ""

    @property
    def own_folder(self) -> Path | None:
        """The command line's own files; None without TLS inside the mesh."""
        return self._certs.folder(tls.service(SUPERVISOR)) if self._options.mesh else None

    @property
    def ca_file(self) -> Path | None:
        """Whom callers of the front door are to trust; None where the system knows."""
        is_own = self._options.mesh and self._options.certificate is None
        return self._certs.ca_file if is_own else None

    def _of(self, name: str) -> Mapping[str, str]:
        return {"TLS_DIR": str(self._certs.folder(name))} if self._options.mesh else {}

    def _front_folder(self) -> Path:
        return self._certs.folder(_BROUGHT if self._options.certificate else FRONT)

    def _take_over(self) -> None:
        chain, key = self._options.certificate, self._options.key
        if chain is None or key is None:
            raise CertsError("A certificate needs its key: give --tls-cert and --tls-key.")
        folder = self._front_folder()
        try:
            files = {tls.CERTIFICATE_FILE: chain.read_bytes(), tls.KEY_FILE: key.read_bytes()}
            if all(_content(folder / name) == content for name, content in files.items()):
                return
            check_pair(files[tls.CERTIFICATE_FILE], files[tls.KEY_FILE])
            write_folder(folder, files)
        except (OSError, CertificateError) as error:
            raise CertsError(f"{chain} and {key} cannot be used: {error}.") from None

    def _versions(self) -> dict[str, bytes]:
        folders = {name: self._certs.folder(name) for name in self._names}
        if self._options.front:
            folders[FRONT] = self._front_folder()
        return {name: _content(path / tls.CERTIFICATE_FILE) for name, path in folders.items()}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
