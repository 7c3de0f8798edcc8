"""The node's certificate: asked for with the node's key, and renewed before it expires."""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from infermesh.auth.v1 import certificate_service_pb2 as pb
from services.inference.enrolment import REFUSALS
from services.kit import certificates, tls
from services.kit.certificate_reading import CertificateError, Shown, check_pair, read
from services.kit.tls_files import write_folder

if TYPE_CHECKING:
    from infermesh.auth.v1 import certificate_service_pb2_grpc

log = logging.getLogger(__name__)

_TIMEOUT_S = 10.0
_RETRY_S = 1.0
_LOOK_S = 30.0


class NodeCertificate:
    """Keeps the node's TLS folder filled.

    Args:
        stub: Auth, by way of the front door.
        credentials: The node's key as metadata.
        node_id: The node's name.
        folder: The folder.
        now: The clock.
    """

    def __init__(
        self,
        stub: "certificate_service_pb2_grpc.CertificateServiceAsyncStub",
        credentials: tuple[tuple[str, str], ...],
        node_id: str,
        folder: Path,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._stub = stub
        self._credentials = credentials
        self._node_id = node_id
        self._folder = folder
        self._now = now

    async def ensure(self) -> None:
        """Returns once there is a good certificate, kept from an earlier start or new.

        While the mesh is away it asks again every second.

        Raises:
            SystemExit: Status 1: the mesh gives none.
            OSError: It cannot be kept.
        """
        kept = self._kept()
        if kept is not None and not kept.is_due(self._now()):
            return
        has_told = False
        while True:
            try:
                await self._ask()
                return
            except CertificateError as error:
                raise SystemExit(f"The mesh gives no good certificate: {error}") from None
            except grpc.aio.AioRpcError as error:
                if error.code() in REFUSALS:
                    raise SystemExit(
                        f"The mesh gives this node no certificate: {error.details()}"
                    ) from None
                if not has_told:
                    log.warning("the mesh does not answer yet", extra={"error": error.details()})
                has_told = True
            await asyncio.sleep(_RETRY_S)

    async def keep(self) -> None:
        """Renews for ever, from two thirds of a certificate's life on."""
        told = 0.0
        while True:
            await asyncio.sleep(_LOOK_S)
            kept = self._kept()
            if kept is not None and not kept.is_due(self._now()):
                continue
            try:
                await self._ask()
            except (grpc.aio.AioRpcError, OSError, CertificateError) as error:
                # A third of its life is left to try in; then nobody calls this node any more.
                if time.monotonic() - told > 3600 or not told:
                    told = time.monotonic()
                    log.warning("the certificate is not renewed", extra={"error": str(error)})

    async def _ask(self) -> None:
        """Asks once.

        Raises:
            AioRpcError: The mesh refuses, or is away.
            CertificateError: What it sent is not this node's.
            OSError: It cannot be kept.
        """
        key = certificates.make_key()
        request = certificates.make_request(key, self._node_id).decode()
        response = await self._stub.IssueNodeCertificate(
            pb.IssueNodeCertificateRequest(signing_request=request),
            metadata=self._credentials,
            timeout=_TIMEOUT_S,
        )
        certificate = response.certificate.encode()
        check_pair(certificate, key)
        shown = read(certificate)
        if shown.name != tls.node(self._node_id):
            wanted = tls.node(self._node_id)
            raise CertificateError(f"the node's key is for `{shown.name}`, not for `{wanted}`")
        files = {
            tls.CA_FILE: response.authorities.encode(),
            tls.CERTIFICATE_FILE: certificate,
            tls.KEY_FILE: key,
        }
        await asyncio.to_thread(write_folder, self._folder, files)
        log.info(
            "the node has its certificate",
            extra={"serial": shown.serial, "expires": shown.end.isoformat()},
        )

    def _kept(self) -> Shown | None:
        try:
            shown = read((self._folder / tls.CERTIFICATE_FILE).read_bytes())
        except (OSError, CertificateError):
            return None  # as good as none: it is asked for anew
        return shown if shown.name == tls.node(self._node_id) else None
