"""TCP ports of this machine's loopback interface: a free one, and whether one is in use."""

from __future__ import annotations

import itertools
import secrets
import socket

HOST = "127.0.0.1"
PORTS = range(20_000, 32_768)  # below those that systems give by themselves, so that no connection takes one meanwhile
_turns = itertools.count(secrets.randbelow(len(PORTS)))  # two processes that begin at once seldom try the same ones


def free_port() -> int:
    """A TCP port that is free now; another process may take it before the caller does."""
    for turn in itertools.islice(_turns, len(PORTS)):
        port = PORTS[turn % len(PORTS)]
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:  # it is in use
                continue
            return port
    raise OSError(f"no port of {HOST} from {PORTS.start} to {PORTS.stop - 1} is free")


def listens(port: int) -> bool:
    """Whether a process accepts connections on this port."""
    try:
        with socket.create_connection((HOST, port), timeout=0.2):
            return True
    except OSError:
        return False
