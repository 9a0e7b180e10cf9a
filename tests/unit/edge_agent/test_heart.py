"""Heartbeats tell what the service thread noted last, never the state that it changes at that moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from broker.protocol.codec import decode
from broker.protocol.messages import Heartbeat
from broker.transport.port import Outgoing
from edge_agent.config import AgentConfig
from edge_agent.decide import decide
from edge_agent.heart import LONGEST_AGE_S, Heart, snapshot_of
from edge_agent.state import AgentState
from tests.builders import ENCODER, PREFIX, agent, encoder_route, requested, uncalibrated_store
from tests.patience import until


class Sender:
    def __init__(self) -> None:
        self.sent: list[Heartbeat] = []
        self.session: int | None = 7
        config = AgentConfig(id="gw-a", heartbeat_interval_s=0.05)
        self.heart = Heart(
            config, PREFIX, uncalibrated_store(10), 10, session=lambda: self.session, publish=self._publish
        )

    def _publish(self, message: Outgoing) -> None:
        self.sent.append(decode(Heartbeat, message.payload))

    def next(self) -> Heartbeat:
        """One that was begun after this call."""
        seen = len(self.sent)
        until(lambda: self._turn() and len(self.sent) >= seen + 2)
        return self.sent[-1]

    def _turn(self) -> bool:
        self.heart.progress += 1  # as the loop does
        return True


@pytest.fixture
def sender() -> Iterator[Sender]:
    made = Sender()
    made.heart.start()
    yield made
    made.heart.stop()


@pytest.fixture
def busy() -> AgentState:
    state = agent("gw-a", ENCODER, routes=[encoder_route("t")], compute_s=1.0)
    for number in range(5):
        decide(state, requested("t", number), 0.0)
    return state


def test_a_heartbeat_tells_the_snapshot_and_not_what_changed_since(sender: Sender, busy: AgentState) -> None:
    assert (sender.next().in_flight, sender.next().generation) == (0, 0)
    busy.dropped["stale"] = 2
    sender.heart.take(snapshot_of(busy, {"mailbox_full": 3}), 0.0)
    busy.coordinated.clear()
    busy.pending.clear()
    busy.dropped["stale"] = 9
    busy.suspects["gw-b"] = 1.0
    seen = sender.next()
    assert (seen.in_flight, seen.epoch, seen.generation) == (5, 1, 1)
    assert seen.dropped == {"stale": 2, "mailbox_full": 3}
    assert seen.suspects == {}


def test_without_a_session_there_is_no_heartbeat_and_numbers_have_no_gap(sender: Sender) -> None:
    sender.next()
    sender.session = None
    sender.heart.wake()
    sender.session = 8
    assert sender.next().session == 8
    assert [each.seq for each in sender.sent] == list(range(len(sender.sent)))


def test_a_snapshot_grows_old_as_fast_as_heartbeats_come() -> None:
    old: Callable[[float], bool] = Sender().heart.needs_snapshot
    assert old(1.0)
    slow = Heart(
        AgentConfig(id="gw-a", heartbeat_interval_s=60),
        PREFIX,
        uncalibrated_store(10),
        10,
        session=lambda: None,
        publish=lambda _: None,
    )
    slow.take(snapshot_of(AgentState("gw-a", PREFIX), {}), 100.0)
    assert not slow.needs_snapshot(100.0 + LONGEST_AGE_S / 2)
    assert slow.needs_snapshot(100.0 + LONGEST_AGE_S)
