"""Each connection for control messages tells the broker that it takes at most 1 MiB, and sends no more.

That a connection with such a limit survives a larger message is in ``test_transport``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.transport.connection import Connection
from broker.transport.memory import MemoryBroker
from broker.transport.port import MAX_CONTROL_PACKET_BYTES, MAX_PACKET_BYTES, MakeTransport, Transport
from edge_agent.config import AgentConfig
from edge_agent.device.broker_drops import BrokerDrops
from edge_agent.service import Agent
from orchestrator.service import Orchestrator
from s2m3.testbed import observer
from tests.builders import InlinePlanner, profile, uncalibrated_store
from tests.patience import until


class Connections:
    """The limits of the connections that processes make, by the ends of client ids; all are of one broker."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.limits: dict[str, int] = {}
        self.made: dict[str, Transport] = {}

    @property
    def connect(self) -> MakeTransport:
        def make(connection: Connection, *, client_id: str, **options: object) -> Transport:
            made = self.broker.connect(connection, client_id=client_id, **options)  # type: ignore[arg-type]
            _, kind, *names = client_id.split(".")
            kind = ".".join((kind, *names[1:]))
            limit = options.get("max_packet_bytes", MAX_PACKET_BYTES)
            assert isinstance(limit, int)
            self.limits[kind], self.made[kind] = limit, made
            return made

        return make


@pytest.fixture
def connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connections]:
    """Those of an agent, an orchestrator that leads, and an observer."""
    seen = Connections()
    agent = Agent(
        AgentConfig(id="gw-a"),
        profile=profile(),
        store=uncalibrated_store(100),
        make_transport=seen.connect,
    )
    orchestrator = Orchestrator(
        Connection(), tmp_path, settle_s=0.05, make_transport=seen.connect, make_planner=InlinePlanner
    )
    running = [threading.Thread(target=each.run) for each in (agent, orchestrator)]
    for thread in running:
        thread.start()
    monkeypatch.setattr(observer, "connect", seen.connect)
    observer.Observer(Connection())
    until(lambda: "orchestrators.control" in seen.limits and all(made.connected for made in seen.made.values()))
    yield seen
    seen.made["clients"].close()
    agent.stop()
    orchestrator.stop()
    for thread in running:
        thread.join()


def test_only_connections_for_requests_and_tensors_take_more_than_a_control_message(connections: Connections) -> None:
    BrokerDrops(Connection(), "gw-a", connections.connect).look(0.0)
    until(lambda: "devices.drops" in connections.limits)
    control = {name for name, limit in connections.limits.items() if limit == MAX_CONTROL_PACKET_BYTES}
    assert control == {"devices.control", "devices.drops", "orchestrators.control", "clients"}
    assert connections.limits.keys() - control == {"devices.data", "orchestrators.data"}
