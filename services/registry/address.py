"""Where a node can be reached, and whether it can be the one that joins."""

import ipaddress

from services.registry import refusals


def canonical_address(address: str) -> str:
    """Returns an address in the one form by which nodes are told apart, and that Envoy takes.

    Raises:
        MeshError: It is not one that a single host can be reached at; Envoy would refuse all
            endpoints for the sake of this one.
    """
    host, _, port = address.rpartition(":")
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise refusals.bad_address(f"join.address: `{host}` is not an IP address") from None
    ip = getattr(ip, "ipv4_mapped", None) or ip
    has_scope = getattr(ip, "scope_id", None) is not None
    if has_scope or ip.is_unspecified or ip.is_multicast or not 0 < int(port) < 65536:
        raise refusals.bad_address(f"join.address: no host can be reached at `{address}`")
    return f"[{ip}]:{int(port)}" if ip.version == 6 else f"{ip}:{int(port)}"


def check_faces_mesh(address: str, source: str) -> None:
    """Checks that an address can belong to a node that joins from `source`.

    Args:
        address: The address in its canonical form.
        source: The IP address that the join came from; empty when it came past Envoy.

    Raises:
        MeshError: It is the loopback of this machine, and the node is not on it.
    """
    if not source:
        return
    host = ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    try:
        origin = ipaddress.ip_address(source)
    except ValueError:
        raise refusals.bad_address("join.address: where the join came from is unknown") from None
    origin = getattr(origin, "ipv4_mapped", None) or origin
    if host.is_loopback and not origin.is_loopback:
        raise refusals.foreign_loopback(address, str(origin))
