"""One coordinator's word is checked by a request of the orchestrator's own, before anything follows from it."""

from __future__ import annotations

from broker.protocol.messages import SUSPECTED_FOR_S, Heartbeat, HeldModule
from broker.transport.port import LinkDown, LinkUp
from orchestrator.events import (
    CheckAnswered,
    CheckDevice,
    DeviceStateReceived,
    Event,
    HeartbeatReceived,
    MembershipEvent,
    Tick,
)
from orchestrator.membership.checks import (
    ANSWER_S,
    CHECK_EVERY_S,
    MAX_CHECKS,
    WAITING_PASSES,
    Checks,
    begin,
    conclude,
)
from orchestrator.membership.failure_detector import Cluster, on_own_heartbeat
from orchestrator.membership.failure_detector import on_event as detect
from tests.builders import online, profile


class Fleet:
    """Devices with one ready module each, which send heartbeats when a test says so."""

    def __init__(self, *names: str, compute_s: float = 0.1) -> None:
        self.now_s, self.seq = 100.0, 0
        self.compute_s = compute_s
        self.cluster = detect(Cluster(heartbeat_interval_s=1.0), LinkUp(1), 0.0)
        self.checks: Checks = {}
        self.sent: list[CheckDevice] = []
        self.names = names
        for name in names:
            self.feed(DeviceStateReceived(name, online(1, profile())))
            self.heartbeat(name)

    def feed(self, event: Event) -> None:
        self.cluster, self.checks = conclude(self.cluster, self.checks, event, self.now_s)
        if isinstance(event, MembershipEvent):
            self.cluster = detect(self.cluster, event, self.now_s)
        self.checks, sent = begin(self.cluster, self.checks, event, self.now_s)
        self.sent += sent

    def heartbeat(self, name: str, *suspects: str, since_s: float = 0.0) -> None:
        self.seq += 1
        held = {"m": HeldModule(module="m", state="ready", compute_s=self.compute_s)}
        message = Heartbeat(
            session=1, seq=self.seq, epoch=1, generation=2, modules=held, suspects=dict.fromkeys(suspects, since_s)
        )
        self.feed(HeartbeatReceived(name, message))

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        for name in self.names:
            self.heartbeat(name, *(["c"] if name == "a" else []), since_s=seconds)
        self.feed(Tick())

    def unresponsive(self) -> bool:
        return self.cluster.devices["c"].unresponsive


def test_a_device_that_answers_stays_in_service_whatever_one_coordinator_says() -> None:
    fleet = Fleet("a", "c")
    for _ in range(20):
        fleet.heartbeat("a", "c")
        if fleet.sent:
            fleet.feed(CheckAnswered("c", fleet.sent[-1].request))
        fleet.wait(0.5)
        assert not fleet.unresponsive()
    assert len(fleet.sent) == 3, "at most one check in five seconds"
    assert fleet.sent[0].key == "m"
    assert fleet.sent[0].fence == (1, 2)


def test_a_device_that_does_not_answer_is_unresponsive_until_it_answers_a_later_check() -> None:
    fleet = Fleet("a", "c")
    fleet.heartbeat("a", "c")
    (check,) = fleet.sent
    assert check.within_s == ANSWER_S + WAITING_PASSES * fleet.compute_s
    fleet.wait(check.within_s - 0.05)
    assert not fleet.unresponsive()
    fleet.wait(0.05)
    assert fleet.unresponsive()
    fleet.wait(CHECK_EVERY_S)
    fleet.wait(0.1)
    assert len(fleet.sent) == 2
    fleet.feed(CheckAnswered("c", check.request))
    assert fleet.unresponsive(), "an answer that is too late proves nothing"
    fleet.feed(CheckAnswered("c", fleet.sent[-1].request))
    assert not fleet.unresponsive()


def test_the_failed_check_is_forgotten_with_the_coordinators_report() -> None:
    fleet = Fleet("a", "c")
    fleet.heartbeat("a", "c")
    fleet.wait(2.0)
    assert fleet.unresponsive()
    fleet.heartbeat("a")
    assert not fleet.unresponsive()
    fleet.now_s += SUSPECTED_FOR_S + 1
    fleet.feed(Tick())
    assert not fleet.cluster.devices["c"].timeout_reports


def test_a_device_that_is_called_as_the_orchestrator_takes_no_evidence_away() -> None:
    fleet = Fleet("a", "c", "orchestrator")
    fleet.heartbeat("a", "c")
    fleet.wait(2.0)
    fleet.heartbeat("orchestrator")
    assert fleet.unresponsive()


def test_a_busy_device_has_the_time_for_what_waits_there() -> None:
    fleet = Fleet("a", "c", compute_s=2.0)
    fleet.heartbeat("a", "c")
    fleet.wait(6.0)
    assert not fleet.unresponsive()


def test_our_own_link_is_no_evidence() -> None:
    fleet = Fleet("a", "c")
    fleet.heartbeat("a", "c")
    fleet.feed(LinkDown("lost"))
    fleet.feed(LinkUp(2))
    fleet.wait(2.0)
    assert not fleet.unresponsive()
    stalled = Fleet("a", "c")
    stalled.cluster = on_own_heartbeat(stalled.cluster, stalled.now_s - 1.0)
    stalled.heartbeat("a", "c")
    stalled.wait(2.0)
    assert not stalled.unresponsive()


def test_a_device_that_accuses_everybody_costs_a_bounded_number_of_checks() -> None:
    others = [f"gw-{number}" for number in range(100)]
    fleet = Fleet("a", *others)
    for _ in range(10):
        fleet.heartbeat("a", *others, "a", "unknown")
    assert len(fleet.sent) == MAX_CHECKS
    assert all(device in others for device in (check.device for check in fleet.sent))
