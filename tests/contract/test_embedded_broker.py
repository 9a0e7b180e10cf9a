"""The embedded broker has no accounts, so nothing but this machine can reach it."""

from __future__ import annotations

import psutil

from broker.servers.embedded import EmbeddedBroker
from broker.servers.ports import HOST


def test_it_listens_on_loopback_only() -> None:
    with EmbeddedBroker() as broker:
        assert broker._broker is not None
        assert broker._broker._process is not None
        process = psutil.Process(broker._broker._process.pid)
        every = [process, *process.children(recursive=True)]
        listening = [each.laddr.ip for one in every for each in one.net_connections() if each.status == "LISTEN"]
    assert set(listening) == {HOST}
