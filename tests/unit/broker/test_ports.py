"""Free ports: the system gives none of them to anybody meanwhile, and no two calls give the same."""

from __future__ import annotations

import socket
from contextlib import suppress

from broker.servers.ports import HOST, PORTS, free_port


def test_free_ports_differ_and_are_none_that_the_system_gives_by_itself() -> None:
    given = [free_port() for _ in range(100)]
    assert len(set(given)) == 100
    assert set(given) <= set(PORTS)


def test_a_port_in_use_is_left_out() -> None:
    port = free_port()
    following = PORTS[(PORTS.index(port) + 1) % len(PORTS)]
    with socket.socket() as taken:
        with suppress(OSError):  # another one has it
            taken.bind((HOST, following))
        assert free_port() != following
