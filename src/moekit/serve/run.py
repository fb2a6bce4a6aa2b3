"""An application on a port of this machine, until it is told to stop."""

import ipaddress
import socket

import uvicorn
from starlette.applications import Starlette

from moekit.core.errors import UsageError

# Of an answer that is under way when the server is told to stop.
_GRACE_S = 3
# Longer than clients keep idle connections: who closes first while the other begins to send makes the request fail.
_KEEP_ALIVE_S = 75


def bind(host: str, port: int) -> socket.socket:
    """Open a socket that listens on `host`; port 0 takes a free one. Raise UsageError where that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"Cannot listen on {host}: {error.strerror}.") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(1024)
    except OSError as error:
        bound.close()
        raise UsageError(f"Cannot listen on port {port} of {host}: {error.strerror}.") from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Say where clients find the server: `http://127.0.0.1:8000/v1`."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def is_loopback(host: str) -> bool:
    """Tell whether only programs of this machine reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def hosts_of(host: str) -> frozenset[str] | None:
    """Give the names that requests may use for a server that listens on `host`; None for any."""
    return frozenset({"127.0.0.1", "::1", "localhost", host}) if is_loopback(host) else None


def server_of(app: Starlette) -> uvicorn.Server:
    """Make the server of an application; its `serve` answers on the sockets it is given until it is told to stop."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
    )
    return uvicorn.Server(config)
