"""Sockets that listen, for the processes that answer HTTP: the address, and the host that a request names.

Owns the error of an address that can't be used. Knows no server.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from broker.protocol.errors import BadFile


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens at this address; raises BadFile when it can't."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            fix = "end the program that listens there, or take another port"
            raise BadFile(file=f"--port {port}", problem=f"port {port} of {host} is in use", fix=fix) from error
        problem = f"can't listen at {host}:{port}: {getattr(error, 'strerror', None) or error}"
        raise BadFile(file="--bind", problem=problem, fix="name an address of this machine, and a free port") from error
    with listener:
        yield listener


def url_of(listener: socket.socket, host: str, scheme: str = "http") -> str:
    """The address of a server that listens there, as a person opens it."""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def is_loopback(address: str) -> bool:
    """Whether an address to listen at can be reached from this machine only."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def is_own_name(host: str) -> bool:
    """Whether a Host header is an address, or this machine's own name: a web page's own name may lead anywhere."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    try:
        return name == "localhost" or bool(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return False
