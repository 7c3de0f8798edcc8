"""Serves `infermesh.auth.v1.CertificateService`."""

import logging
from pathlib import Path
from typing import Any

import grpc

from infermesh.auth.v1 import certificate_service_pb2 as pb
from infermesh.auth.v1 import certificate_service_pb2_grpc
from services.auth import errors
from services.auth.keys import Keys
from services.auth.servicer import audit_fields, caller_key_id
from services.kit import tls

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]

_CA_KEY_FILE = "ca-key.pem"


class CertificateServicer(certificate_service_pb2_grpc.CertificateServiceServicer):
    """Signs what nodes ask for.

    Args:
        keys: All keys; a node's says which node it is.
        ca_dir: The authority's folder, read for each call: it may be replaced. None for none.
    """

    def __init__(self, keys: Keys, ca_dir: Path | None) -> None:
        self._keys = keys
        self._ca_dir = ca_dir

    async def IssueNodeCertificate(
        self, request: pb.IssueNodeCertificateRequest, context: _Context
    ) -> pb.IssueNodeCertificateResponse:
        """Signs a certificate for the node whose key calls."""
        if self._ca_dir is None:
            raise errors.no_authority()
        # From the store: what is in memory does not say which node it is.
        key = await self._keys.get(caller_key_id(context))
        if not key.node_id:
            raise errors.no_nodes_key()
        # Takes 12 MB, which meshes without TLS save.
        from services.kit.certificate_reading import CertificateError, read
        from services.kit.certificates import Authority

        try:
            authorities = (self._ca_dir / tls.CA_FILE).read_bytes()
            authority = Authority(authorities, (self._ca_dir / _CA_KEY_FILE).read_bytes())
        except (OSError, CertificateError) as error:
            log.error("the authority cannot be used", extra={"error": str(error)})
            raise errors.no_authority() from None
        try:
            signed = authority.sign_request(request.signing_request.encode(), tls.node(key.node_id))
        except CertificateError as error:
            raise errors.bad_signing_request(str(error)) from None
        shown = read(signed)
        fields = {"node_id": key.node_id, "serial": shown.serial, **audit_fields(key, context)}
        log.info("certificate issued", extra={"audit": True, **fields})
        response = pb.IssueNodeCertificateResponse(
            certificate=signed.decode(), authorities=authorities.decode()
        )
        response.begin_time.FromDatetime(shown.begin)
        response.expire_time.FromDatetime(shown.end)
        return response
