"""Suspicions, probation, mass silence and stalls: the failure detector over a fleet."""

from __future__ import annotations

import pytest

from broker.protocol.messages import SUSPECTED_FOR_S
from broker.transport.port import LinkDown, LinkUp
from orchestrator.events import DeviceStateReceived, DrainReceived, HeartbeatReceived, MembershipEvent, Overslept, Tick
from orchestrator.membership.device import Fitness
from orchestrator.membership.doubts import FORGIVE_AFTER_S, PROBATION_HEARTBEATS
from orchestrator.membership.failure_detector import (
    ECHO_GIVEN_UP_S,
    MASS_SILENCE_INTERVALS,
    Cluster,
    next_deadline_s,
    on_event,
    on_own_heartbeat,
)
from tests.builders import heartbeat, offline, online, profile

PROFILE = profile(1000, latency_s=0.002)


class Fleet:
    """Devices that send a heartbeat once a second until a test stops them."""

    def __init__(self, *names: str) -> None:
        self.cluster = on_event(Cluster(heartbeat_interval_s=1.0), LinkUp(1), 0.0)
        self.now_s = 100.0
        self.seq = 0
        self.sessions: dict[str, int] = {}
        self.beating: set[str] = set()
        self.suspects: dict[str, dict[str, float]] = {}  # coordinator -> device -> since when
        for name in names:
            self.join(name)

    def feed(self, event: MembershipEvent) -> None:
        self.cluster = on_event(self.cluster, event, self.now_s)
        assert on_event(self.cluster, event, self.now_s) == self.cluster, "the same event again changes nothing"

    def join(self, name: str) -> None:
        self.sessions[name] = self.sessions.get(name, 0) + 1
        self.feed(DeviceStateReceived(name, online(self.sessions[name], PROFILE)))
        self.beating.add(name)
        self.heartbeat(name)

    def heartbeat(self, name: str) -> None:
        self.seq += 1
        suspects = {other: self.now_s - at_s for other, at_s in self.suspects.get(name, {}).items()}
        self.feed(HeartbeatReceived(name, heartbeat(self.seq, self.sessions[name], suspects=suspects)))

    def die(self, name: str) -> None:
        self.beating.discard(name)
        self.feed(DeviceStateReceived(name, offline(self.sessions[name])))

    def echo(self) -> None:
        self.cluster = on_own_heartbeat(self.cluster, self.now_s)

    def blame(self, by: str, suspect: str) -> None:
        self.suspects.setdefault(by, {})[suspect] = self.now_s
        self.heartbeat(by)

    def go_on(self, seconds: float) -> None:
        for _ in range(round(seconds * 4)):
            self.now_s += 0.25
            if self.now_s % 1 == 0:
                for name in sorted(self.beating):
                    self.heartbeat(name)
            self.feed(Tick())

    def doubt(self, name: str) -> str | None:
        return self.cluster.devices[name].doubt

    def alive(self) -> set[str]:
        return {device.id for device in self.cluster.alive()}


# --- how often a device's heartbeats come ---


@pytest.mark.parametrize("interval_s", [0.25, 1.0, 10.0, 60.0])
def test_a_device_is_late_and_dead_by_its_own_heartbeat_interval(interval_s: float) -> None:
    fleet = Fleet("other")
    birth = online(1, PROFILE).model_copy(update={"heartbeat_interval_s": interval_s})
    fleet.feed(DeviceStateReceived("own", birth))
    fleet.feed(HeartbeatReceived("own", heartbeat(1)))
    heard_s = fleet.now_s
    standings: dict[float, str] = {}
    for intervals in (1.9, 2.0, 3.2, 3.25):
        fleet.now_s = heard_s + intervals * interval_s
        fleet.heartbeat("other")
        fleet.feed(Tick())
        standings[intervals] = fleet.cluster.devices["own"].health
    assert standings == {1.9: "well", 2.0: "suspect", 3.2: "suspect", 3.25: "dead"}


def test_a_device_that_states_a_longer_interval_in_its_session_gets_it() -> None:
    fleet = Fleet("a", "b")
    birth = online(1, PROFILE).model_copy(update={"heartbeat_interval_s": 10.0})
    fleet.feed(DeviceStateReceived("a", birth))
    fleet.now_s += 10.0
    fleet.heartbeat("b")
    fleet.feed(Tick())
    assert fleet.alive() == {"a", "b"}


def test_a_probation_counts_heartbeats_by_the_devices_own_interval() -> None:
    fleet = Fleet("a", "b")
    fleet.die("b")
    fleet.now_s += 5.0
    fleet.feed(DeviceStateReceived("b", online(2, PROFILE).model_copy(update={"heartbeat_interval_s": 4.0})))
    for seq in range(1, 2 * PROBATION_HEARTBEATS):  # every second, which is early
        fleet.now_s += 1.0
        fleet.feed(HeartbeatReceived("b", heartbeat(seq, 2)))
        fleet.heartbeat("a")
    assert fleet.doubt("b") is not None


# --- what others say ---


def test_heartbeats_between_the_regular_ones_prove_nothing() -> None:
    fleet = Fleet("a", "b")
    fleet.die("b")
    fleet.now_s += 1.0
    fleet.join("b")
    for _ in range(3 * PROBATION_HEARTBEATS):
        fleet.now_s += 0.01
        fleet.heartbeat("b")
    assert fleet.cluster.devices["b"].doubt is not None


def test_one_report_of_one_coordinator_moves_nothing() -> None:
    fleet = Fleet("a", "b")
    fleet.blame("a", "b")
    fleet.go_on(3)
    assert not fleet.cluster.devices["b"].unresponsive


def test_two_coordinators_reports_make_a_device_unresponsive_until_one_is_taken_back() -> None:
    fleet = Fleet("a", "b", "c")
    fleet.blame("a", "c")
    fleet.blame("b", "c")
    assert fleet.cluster.devices["c"].unresponsive
    assert fleet.doubt("c") == "calls to it time out"
    fleet.suspects.clear()
    fleet.heartbeat("a")
    assert not fleet.cluster.devices["c"].unresponsive


def test_many_reports_of_one_coordinator_move_nothing() -> None:
    fleet = Fleet("a", "b", "c")
    for _ in range(5):
        fleet.blame("a", "c")
        fleet.go_on(2)
    assert not fleet.cluster.devices["c"].unresponsive
    fleet.beating.discard("c")
    fleet.blame("a", "c")
    fleet.go_on(3.0)
    assert "c" in fleet.alive(), "nor is it dead sooner"


def test_only_coordinators_in_good_standing_count() -> None:
    fleet = Fleet("a", "b", "c", "d")
    fleet.die("b")
    fleet.now_s += 1.0
    fleet.join("b")  # on probation
    fleet.blame("a", "c")
    fleet.blame("b", "c")
    assert not fleet.cluster.devices["c"].unresponsive
    fleet.feed(DrainReceived("d", drain=True))
    fleet.blame("d", "c")
    assert not fleet.cluster.devices["c"].unresponsive
    fleet.go_on(PROBATION_HEARTBEATS + 1)
    fleet.blame("b", "c")
    assert fleet.cluster.devices["c"].unresponsive
    fleet.blame("c", "a")
    fleet.blame("c", "b")
    assert not fleet.cluster.devices["a"].timeout_reports, "an unresponsive device's word doesn't count"


def test_a_suspicion_ends_by_itself() -> None:
    fleet = Fleet("a", "b", "c")
    fleet.blame("a", "c")
    fleet.blame("b", "c")
    fleet.go_on(SUSPECTED_FOR_S + 1)
    assert not fleet.cluster.devices["c"].unresponsive


def test_a_silent_device_is_dead_sooner_when_two_coordinators_suspect_it() -> None:
    fleet = Fleet("a", "b", "c")
    fleet.beating.discard("b")
    fleet.blame("a", "b")
    fleet.blame("c", "b")
    fleet.go_on(2)
    assert fleet.alive() == {"a", "b", "c"}
    fleet.go_on(0.25)
    assert fleet.alive() == {"a", "c"}


# --- probation ---


def test_a_device_that_returns_is_on_probation_for_some_heartbeats_and_longer_after_each_further_death() -> None:
    fleet = Fleet("a", "b")
    for round_, heartbeats in enumerate((PROBATION_HEARTBEATS, 2 * PROBATION_HEARTBEATS)):
        fleet.go_on(5)
        fleet.die("b")
        fleet.go_on(2)
        fleet.join("b")
        fleet.go_on(heartbeats - 1)
        assert (
            fleet.doubt("b")
            == f"it died and came back, and is on probation until {5 * 2**round_} heartbeats came without a gap"
        ), round_
        fleet.go_on(1)
        assert fleet.doubt("b") is None, round_


def test_a_device_that_dies_and_returns_every_two_seconds_is_never_trusted() -> None:
    fleet = Fleet("a", "b")
    fleet.go_on(5)
    for _ in range(20):
        fleet.die("b")
        fleet.go_on(2)
        fleet.join("b")
        fleet.go_on(2)
        assert fleet.doubt("b") is not None
    assert fleet.cluster.devices["b"].flaps.heartbeats_owed > 50 * PROBATION_HEARTBEATS, "by now it takes minutes"


def test_a_gap_starts_the_probation_again() -> None:
    fleet = Fleet("a", "b")
    fleet.go_on(5)
    fleet.die("b")
    fleet.join("b")
    fleet.go_on(PROBATION_HEARTBEATS - 1)
    fleet.beating.discard("b")
    fleet.go_on(2.5)
    fleet.beating.add("b")
    fleet.go_on(PROBATION_HEARTBEATS - 1)
    assert fleet.doubt("b") is not None


def test_deaths_long_ago_are_forgiven() -> None:
    fleet = Fleet("a", "b")
    fleet.go_on(5)
    for _ in range(6):
        fleet.die("b")
        fleet.join("b")
    fleet.go_on(FORGIVE_AFTER_S)
    fleet.die("b")
    fleet.join("b")
    assert fleet.cluster.devices["b"].flaps.heartbeats_owed == PROBATION_HEARTBEATS


def test_a_new_device_and_a_broker_that_restarts_put_no_device_on_probation() -> None:
    fleet = Fleet("a", "b")
    fleet.feed(LinkDown("the broker restarts"))
    fleet.go_on(3)
    fleet.feed(LinkUp(2))
    fleet.die("b")  # the broker says its will as it begins
    fleet.join("b")
    assert fleet.doubt("a") is None
    assert fleet.doubt("b") is None


# --- when most vanish ---


def test_when_most_devices_fall_silent_at_once_none_is_dead_before_the_additional_time_is_over() -> None:
    fleet = Fleet("a", "b", "c", "d", "e")
    fleet.go_on(1)
    fleet.beating -= {"a", "b", "c"}
    fleet.go_on(3.25 + MASS_SILENCE_INTERVALS - 0.25)
    assert fleet.alive() == {"a", "b", "c", "d", "e"}
    fleet.go_on(0.25)
    assert fleet.alive() == {"d", "e"}


def test_once_one_is_back_the_others_have_an_interval_and_a_quarter_to_be_heard() -> None:
    fleet = Fleet("a", "b", "c", "d", "e")
    fleet.go_on(1)
    fleet.beating -= {"a", "b", "c"}
    fleet.go_on(4)
    fleet.beating |= {"a", "b"}
    fleet.go_on(2)  # a is back after the first of these
    assert fleet.alive() == {"a", "b", "c", "d", "e"}
    fleet.go_on(0.25)
    assert fleet.alive() == {"a", "b", "d", "e"}


def test_while_our_own_words_do_not_come_back_no_time_passes_for_the_silent() -> None:
    fleet = Fleet("a", "b")
    fleet.go_on(3)
    fleet.echo()
    fleet.beating.clear()
    fleet.go_on(6)
    assert fleet.alive() == {"a", "b"}, "our link stalls: who else would know whether they heartbeat?"
    fleet.beating.add("a")
    fleet.heartbeat("a")  # what was queued arrives, in any order
    fleet.echo()
    fleet.go_on(1.5)
    assert fleet.alive() == {"a", "b"}
    fleet.echo()
    fleet.go_on(0.75)
    assert fleet.alive() == {"a", "b"}
    fleet.go_on(0.25)
    assert fleet.alive() == {"a"}, "3.25 intervals after its last heartbeat, without the 5.1 that our link stood still"


def test_a_stall_of_our_link_kills_no_suspected_device() -> None:
    fleet = Fleet("a", "b")
    fleet.go_on(3.75)
    fleet.blame("b", "a")
    fleet.echo()
    fleet.beating.clear()
    fleet.go_on(8)
    assert fleet.alive() == {"a", "b"}


def test_a_broker_that_never_echoes_stops_the_detector_for_a_while_only() -> None:
    fleet = Fleet("a", "b")
    fleet.echo()
    fleet.beating.discard("b")
    fleet.go_on(ECHO_GIVEN_UP_S)
    assert fleet.alive() == {"a", "b"}
    fleet.go_on(3.25)
    assert fleet.alive() == {"a"}


def test_a_stall_is_no_reason_to_look_again_and_again() -> None:
    fleet = Fleet("a")
    fleet.echo()
    fleet.beating.clear()
    fleet.go_on(2)
    due_s = next_deadline_s(fleet.cluster)
    assert due_s is not None
    assert due_s > fleet.now_s


def test_two_silent_devices_are_dead_in_time_even_if_they_are_most() -> None:
    fleet = Fleet("a", "b", "c")
    fleet.go_on(1)
    fleet.beating -= {"a", "b"}
    fleet.go_on(3.25)
    assert fleet.alive() == {"c"}


def test_when_most_devices_say_goodbye_at_once_placing_waits_until_they_are_back_or_the_time_is_over() -> None:
    for come_back in (False, True):
        fleet = Fleet("a", "b", "c", "d")
        fleet.go_on(5)
        for name in ("a", "b", "c"):
            fleet.die(name)
        assert fleet.alive() == {"d"}, "nothing is routed to them"
        assert fleet.cluster.mass_departure is not None
        if come_back:
            fleet.join("a")
            fleet.join("b")
        else:
            fleet.go_on(MASS_SILENCE_INTERVALS)
        assert fleet.cluster.mass_departure is None


def test_devices_that_go_one_after_the_other_are_no_mass_departure() -> None:
    fleet = Fleet("a", "b", "c", "d")
    for name in ("a", "b", "c"):
        fleet.go_on(2)
        fleet.die(name)
        assert fleet.cluster.mass_departure is None


# --- ourselves, and the operator ---


def test_devices_that_never_lived_here_and_one_that_comes_and_goes_make_no_departure_a_mass_departure() -> None:
    fleet = Fleet("a", "b", "evil")
    fleet.die("evil")
    fleet.join("evil")
    for stranger in ("s", "t", "u", "v"):
        fleet.feed(DeviceStateReceived(stranger, online(1, PROFILE)))
    for stranger in ("s", "t", "u", "v"):
        fleet.feed(DeviceStateReceived(stranger, offline(1)))
    fleet.die("evil")
    fleet.die("a")
    assert fleet.cluster.mass_departure is None


def test_a_device_that_comes_and_goes_again_and_again_gives_the_silent_ones_no_more_time() -> None:
    """With it they are half of all, without it most: each of its returns would end a mass silence."""
    fleet = Fleet("a", "b", "c", "d", "e", "evil")
    fleet.beating = {"d", "e", "evil"}
    for _ in range(12):
        fleet.die("evil")
        fleet.go_on(0.5)
        fleet.join("evil")
        fleet.go_on(0.5)
    assert fleet.alive() == {"d", "e", "evil"}


def test_devices_on_probation_make_no_silence_a_mass_silence() -> None:
    fleet = Fleet("a", "b", "c", "evil", "evil-2")
    fleet.go_on(1)
    for name in ("evil", "evil-2"):
        fleet.die(name)
        fleet.join(name)
    fleet.beating = {"b", "c"}
    fleet.go_on(3.25)
    assert fleet.alive() == {"b", "c"}, "in the usual time"


def test_when_our_own_process_stood_still_every_device_has_the_full_time_again() -> None:
    fleet = Fleet("a", "b")
    fleet.now_s += 60
    fleet.feed(Overslept())
    assert fleet.alive() == {"a", "b"}
    assert {device.health for device in fleet.cluster.alive()} == {"well"}
    fleet.now_s += 3.25
    fleet.feed(Tick())
    assert fleet.alive() == set()


@pytest.mark.parametrize("known", [True, False])
def test_a_drain_holds_for_a_device_that_restarts_and_for_one_that_is_not_known_yet(known: bool) -> None:  # noqa: FBT001 - pytest passes names
    fleet = Fleet("a", *(["b"] if known else []))
    fleet.feed(DrainReceived("b", drain=True))
    fleet.join("b")
    assert fleet.cluster.devices["b"].draining
    assert fleet.cluster.devices["b"].fitness <= Fitness.DRAINING
    fleet.feed(DrainReceived("b", drain=False))
    assert fleet.cluster.devices["b"].fitness > Fitness.DRAINING


def test_a_drain_that_was_taken_back_while_our_link_was_down_is_over() -> None:
    fleet = Fleet("a", "b")
    for device in ("a", "b"):
        fleet.feed(DrainReceived(device, drain=True))
    fleet.feed(LinkDown("lost"))
    fleet.feed(LinkUp(2))
    fleet.feed(DrainReceived("b", drain=True))  # the broker remembers only this one
    assert [device.draining for device in fleet.cluster.alive()] == [False, True]


def test_a_device_that_only_fell_silent_is_forgotten_as_well() -> None:
    fleet = Fleet("a", "b")
    fleet.beating.discard("b")
    fleet.go_on(4)
    fleet.beating.discard("a")
    fleet.now_s += 3600.0
    fleet.feed(Tick())
    assert "b" not in fleet.cluster.devices
