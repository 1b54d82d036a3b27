"""Hosts and ports as text: IPv6 hosts stand in brackets beside a port and without them alone.

What enters: a host as settings give it, or a target as a client gives it. What leaves: text. Opens nothing.
"""

from __future__ import annotations

import ipaddress


def bare_host(host: str) -> str:
    """`host` without the brackets of an IPv6 address, as sockets take it."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def address(host: str, port: int) -> str:
    """Host and port as one text, an IPv6 host in brackets."""
    bare = bare_host(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def is_loopback(target: str) -> bool:
    """Whether a gRPC target ("host:port", "dns:///host:port", "unix:...") names this machine itself."""
    if target.startswith("unix:"):
        return True
    host = target.rpartition("/")[2].rpartition(":")[0] or target
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare_host(host)).is_loopback
    except ValueError:
        return False


def no_proxy(target: str) -> tuple[tuple[str, int], ...]:
    """Options of a gRPC channel to `target`: one to this machine never goes through a proxy."""
    return (("grpc.enable_http_proxy", 0),) if is_loopback(target) else ()
