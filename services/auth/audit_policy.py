"""Says which calls the audit log tells of."""

from collections.abc import Mapping

from infermesh.access.v1 import access_pb2
from services.auth.access import ROLE_NAMES, Access

JOINS = frozenset(
    {
        "/infermesh.registry.v1.NodeService/AttachNode",
        "/infermesh.auth.v1.JoinTokenService/RedeemJoinToken",
        "/infermesh.auth.v1.CertificateService/IssueNodeCertificate",
    }
)
"""The RPCs by which a machine joins, and gets what it joins with."""

_USER = 1 << access_pb2.ROLE_USER
_NODE = 1 << access_pb2.ROLE_NODE
_ALL = sum(1 << role for role in ROLE_NAMES)


def mark(table: Mapping[str, Access], *, inference: bool) -> Mapping[str, Access]:
    """Returns the table with `audited` set: the roles whose calls to an RPC are written down.

    Administrative is what a user may not call. Of that, the calls by which nodes report in are
    left out, several a second of each node; those by which they join are not.

    Args:
        table: The access of each RPC by its path.
        inference: Whether calls that name a model are written down too.
    """
    return {
        path: access._replace(audited=_roles(path, access, inference))
        for path, access in table.items()
    }


def _roles(path: str, access: Access, inference: bool) -> int:
    if access.names_model:
        return _ALL if inference else 0
    if path in JOINS:
        return _ALL
    return 0 if access.roles & _USER else _ALL & ~_NODE
