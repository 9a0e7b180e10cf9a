"""An agent with an account asks what the broker dropped over its control connection: its account allows no third."""

from __future__ import annotations

from typing import Any

from broker.transport.connection import Connection
from broker.transport.port import Delivery
from edge_agent.device.broker_drops import TOPIC, BrokerDrops
from tests.patience import until


class Link:
    """Remembers the changes of its subscriptions."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []

    def subscribe(self, *filters: str) -> None:
        self.changes += [("subscribe", each) for each in filters]

    def unsubscribe(self, *filters: str) -> None:
        self.changes += [("unsubscribe", each) for each in filters]


def test_no_connection_is_made_where_the_agent_has_an_account() -> None:
    def make(*_: object, **__: object) -> Any:
        raise AssertionError("a connection was made")

    link = Link()
    drops = BrokerDrops(Connection(user="gw-a"), "gw-a", make, link)  # type: ignore[arg-type]  # enough of a transport
    drops.look(0.0)
    until(lambda: link.changes)
    drops.stop()
    until(lambda: len(link.changes) > 1)
    assert link.changes == [("subscribe", TOPIC), ("unsubscribe", TOPIC)]


def test_only_the_brokers_own_message_is_taken() -> None:
    drops = BrokerDrops(Connection(), "gw-a", lambda *_, **__: None)  # type: ignore[arg-type]  # unused
    assert drops.hear(Delivery(TOPIC, b"7"))
    assert drops.hear(Delivery(TOPIC, b"no number"))
    assert not drops.hear(Delivery("s2m3/v1/devices/gw-a/assignment", b"7"))
