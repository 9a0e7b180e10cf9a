"""The leader's evidence against requests: who died with what, and what follows for whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker.protocol import messages
from broker.protocol.codec import RawInput, inputs_digest, request_id
from broker.protocol.messages import Alone, DeviceProfile, DeviceState
from broker.transport.port import LinkUp
from orchestrator.decide import next_deadline_s
from orchestrator.events import (
    Action,
    DeviceStateReceived,
    Event,
    HeartbeatReceived,
    PublishAssignment,
    PublishPermit,
    PublishQuarantine,
    PublishRoute,
    QuarantineHeard,
    RequestReceived,
    TaskDeployed,
    Tick,
)
from orchestrator.membership.quarantine import MAX_RECENT, QUARANTINE_S, REFUSED_S
from orchestrator.state import State, initial
from tests.builders import all_of, chain, module, obedient, only
from tests.planned import decide_and_plan

TASK = chain("t", module("x", memory_bytes=10))
REPLY_TO = "s2m3/v1/clients/cam/results/1"
PAYLOAD, OTHER = (inputs_digest({"image": RawInput(data)}) for data in (b"deadly", b"other"))
ID = request_id("t", REPLY_TO, b"1", b"deadly")


class Site:
    """A leader with three devices that hold the one module: the first serves, the others stand by."""

    def __init__(self, epoch: int = 1, **fields: Any) -> None:
        self.state: State = initial(epoch=epoch, heartbeat_interval_s=1.0, settle_s=1.5, **fields)
        self.now_s, self.seq, self.sessions = 0.0, 0, dict[str, int]()
        self.feed(LinkUp(1))
        for device in ("a", "b", "c"):
            self.born(device)
        self.feed(TaskDeployed(TASK))
        self.now_s = 1.5
        self.feed(Tick())
        for device in ("a", "b", "c"):
            self.give_it_a_module(device)

    def feed(self, event: Event) -> list[Action]:
        self.state, actions = decide_and_plan(self.state, event, self.now_s)
        return actions

    def give_it_a_module(self, device: str) -> None:
        """As if it stood by: only devices with modules can die of requests."""
        served = next(last for last in self.state.assignments.values() if last.modules)
        last = self.state.assignments[device].model_copy(update={"modules": served.modules})
        self.state = replace(self.state, assignments={**self.state.assignments, device: last})

    def born(self, device: str, **fields: Any) -> list[Action]:
        self.sessions[device] = self.sessions.get(device, 0) + 1
        profile = DeviceProfile(memory_bytes=1000, compute_flops_per_s=1e9, bandwidth_bits_per_s=100e6, latency_s=0.001)
        birth = DeviceState(status="online", session=self.sessions[device], profile=profile, **fields)
        return [*self.feed(DeviceStateReceived(device, birth)), *self.heartbeat(device)]

    def heartbeat(self, device: str, alone: Alone | None = None) -> list[Action]:
        self.seq += 1
        said = self.state.assignments.get(device)
        return self.feed(HeartbeatReceived(device, obedient(said, self.seq, self.sessions[device], alone=alone)))

    def ask(self, payload: bytes = b"deadly", number: int = 1) -> list[Action]:
        return self.feed(RequestReceived("t", REPLY_TO, str(number).encode(), payload))

    def dies(self, device: str) -> list[Action]:
        return self.feed(DeviceStateReceived(device, DeviceState(status="offline", session=self.sessions[device])))

    def dies_alone(self, device: str, payload: str = PAYLOAD) -> list[Action]:
        self.heartbeat(device, Alone(request=ID, payload=payload))
        return self.dies(device)

    def refused(self) -> set[str]:
        return set(self.state.quarantine.refused)


def listed(actions: list[Action]) -> messages.Quarantine:
    return all_of(actions, PublishQuarantine)[-1].message


@pytest.fixture
def site() -> Site:
    return Site()


def test_the_requests_that_came_before_a_death_run_alone_and_agents_know_it_before_any_route(site: Site) -> None:
    site.ask()
    actions = site.dies("a")
    kinds = [
        type(action) for action in actions if isinstance(action, PublishQuarantine | PublishRoute | PublishAssignment)
    ]
    assert kinds[0] is PublishQuarantine
    assert listed(actions) == messages.Quarantine(epoch=1, requests=(ID,))
    site.now_s += QUARANTINE_S
    assert listed(site.feed(Tick())) == messages.Quarantine(epoch=1)


def test_a_death_without_requests_and_the_death_of_a_device_without_modules_change_nothing(site: Site) -> None:
    assert not all_of(site.dies("a"), PublishQuarantine)
    site.ask()
    site.born("stranger")
    assert not all_of(site.dies("stranger"), PublishQuarantine)


def test_a_device_gets_its_permit_in_the_answer_to_its_heartbeat(site: Site) -> None:
    permit = only(site.heartbeat("b", Alone(request=ID, payload=PAYLOAD)), PublishPermit)
    assert (permit.device, permit.epoch, permit.request) == ("b", 1, ID)
    assert not all_of(site.heartbeat("b"), PublishPermit)


def test_one_device_at_a_time_computes_a_payload_in_quarantine(site: Site) -> None:
    alone = Alone(request=ID, payload=PAYLOAD)
    assert [only(site.heartbeat(device, alone), PublishPermit).granted for device in ("b", "c", "b")] == [
        True,
        False,
        True,
    ]
    site.heartbeat("b")
    assert only(site.heartbeat("c", alone), PublishPermit).granted
    site.dies("c")
    assert only(site.heartbeat("b", alone), PublishPermit).granted


@pytest.mark.parametrize("ends", ["computed", "died", "asks for another one"])
def test_a_device_that_waits_gets_its_permit_when_the_one_before_it_is_done(site: Site, ends: str) -> None:
    """Two nodes of one request need not wait for a heartbeat that is due in a second."""
    alone = Alone(request=ID, payload=PAYLOAD)
    site.heartbeat("a", alone)
    assert [only(site.heartbeat(device, alone), PublishPermit).granted for device in ("b", "c")] == [False, False]
    assert not [each for each in all_of(site.heartbeat("a", alone), PublishPermit) if each.device != "a"]
    if ends == "died":
        actions = site.dies("a")
    else:
        actions = site.heartbeat("a", None if ends == "computed" else Alone(request="2", payload=OTHER))
    freed = [each for each in all_of(actions, PublishPermit) if each.device != "a"]
    assert [(each.request, each.granted) for each in freed] == [(ID, True)], "one device at a time"
    assert freed[0].device in {"b", "c"}
    waiting = ({"b", "c"} - {freed[0].device}).pop()
    assert not all_of(site.heartbeat(waiting), PublishPermit), "who gives up waiting frees nothing"
    assert only(site.heartbeat(waiting, alone), PublishPermit).granted is False
    assert only(site.heartbeat(freed[0].device), PublishPermit).device == waiting


def test_no_device_holds_up_the_others_for_longer_than_a_minute(site: Site) -> None:
    alone = Alone(request=ID, payload=PAYLOAD)
    site.heartbeat("b", alone)
    site.now_s += QUARANTINE_S
    for device in ("b", "c"):
        site.heartbeat(device)
    site.heartbeat("b", alone)
    site.now_s += 1
    assert not only(site.heartbeat("c", alone), PublishPermit).granted
    site.now_s += QUARANTINE_S
    assert only(site.heartbeat("c", alone), PublishPermit).granted


def test_after_two_deaths_the_payload_is_refused_for_ten_minutes_whether_the_devices_come_back_or_not(
    site: Site,
) -> None:
    site.ask()
    site.dies("a")
    actions = site.dies_alone("b")
    assert listed(actions).refused == {PAYLOAD: REFUSED_S}
    assert not all_of(site.heartbeat("c", Alone(request=ID, payload=PAYLOAD)), PublishPermit)
    site.now_s += REFUSED_S - 1
    assert site.refused() == {PAYLOAD}
    site.now_s += 1
    assert (next_deadline_s(site.state) or 0) <= site.now_s
    assert listed(site.feed(Tick())).refused == {}


def test_two_devices_that_die_at_once_condemn_nobody(site: Site) -> None:
    site.ask()
    site.heartbeat("c", Alone(request=ID, payload=PAYLOAD))
    site.dies("a")
    site.dies("b")
    assert not site.refused()
    assert all_of(site.heartbeat("c", Alone(request=ID, payload=PAYLOAD)), PublishPermit)


def test_one_death_with_a_request_alone_and_none_before_it_is_not_enough(site: Site) -> None:
    site.dies_alone("a")
    assert not site.refused()


def test_a_death_long_before_does_not_count(site: Site) -> None:
    site.dies("a")
    site.now_s += QUARANTINE_S + 1
    site.feed(Tick())
    for device in ("b", "c"):
        site.heartbeat(device)
    site.dies_alone("b")
    assert not site.refused()


def test_births_that_name_a_payload_condemn_it_after_the_second_death(site: Site) -> None:
    site.dies("a")
    actions = site.born("a", died_with=(PAYLOAD,), machine_up_s=9e9)
    assert listed(actions) == messages.Quarantine(epoch=1, payloads=(PAYLOAD,))
    assert site.born("a", died_with=(PAYLOAD,)) is not None
    assert not site.refused(), "one death counts once, however often the device says so"
    site.dies("b")
    assert listed(site.born("b", died_with=(PAYLOAD,), machine_up_s=9e9)).refused == {PAYLOAD: REFUSED_S}


def test_the_same_device_may_die_twice(site: Site) -> None:
    for _ in range(2):
        site.dies("a")
        site.born("a", died_with=(PAYLOAD,))
        site.give_it_a_module("a")
    assert site.refused() == {PAYLOAD}


def test_a_device_that_says_it_died_and_did_not_condemns_nobody(site: Site) -> None:
    for device in ("a", "b", "c"):
        site.born(device, died_with=(PAYLOAD,))
    assert not site.state.quarantine.against


@pytest.mark.parametrize(
    "birth", [{"died_with": ()}, {"died_with": (OTHER,)}, {"died_with": None, "machine_up_s": 1.0}]
)
def test_a_device_that_comes_back_and_did_not_crash_of_it_or_lost_its_power_clears_the_payload(
    site: Site, birth: dict[str, Any]
) -> None:
    site.ask()
    site.dies("a")
    site.dies_alone("b")
    assert site.refused() == {PAYLOAD}
    site.now_s += 30.0
    assert listed(site.born("b", **{"machine_up_s": 9e9} | birth)).refused == {}


def test_a_device_that_cannot_know_changes_nothing(site: Site) -> None:
    site.ask()
    site.dies("a")
    site.dies_alone("b")
    site.now_s += 30.0
    site.born("b", died_with=None, machine_up_s=9e9)
    assert site.refused() == {PAYLOAD}


def test_a_new_leader_goes_on_with_the_list_that_the_broker_retained() -> None:
    site = Site(epoch=2)
    said = messages.Quarantine(epoch=1, requests=(ID,), refused={PAYLOAD: 300.0})
    told = listed(site.feed(QuarantineHeard(said, retained=True)))
    assert (told.epoch, told.requests, told.refused) == (2, (ID,), {PAYLOAD: 300.0})
    assert not site.feed(QuarantineHeard(told)), "its own"
    assert not site.feed(QuarantineHeard(told, retained=True))


def test_what_another_client_publishes_is_overwritten(site: Site) -> None:
    lie = messages.Quarantine(epoch=1, refused={PAYLOAD: 600.0})
    assert listed(site.feed(QuarantineHeard(lie))) == messages.Quarantine(epoch=1)
    assert not site.refused()
    site.ask()
    told = listed(site.dies("a"))
    assert listed(site.feed(QuarantineHeard(lie))) == listed(site.feed(QuarantineHeard(None))) == told
    assert not site.feed(QuarantineHeard(told))


def test_over_a_new_link_the_list_is_published_again(site: Site) -> None:
    site.ask()
    site.dies("a")
    site.feed(LinkUp(2))
    site.now_s += 1.5
    assert listed(site.feed(Tick())).requests == (ID,)


def test_only_the_newest_requests_are_kept_and_none_of_tasks_that_do_not_exist(site: Site) -> None:
    for number in range(MAX_RECENT + 10):
        site.ask(number=number)
    site.feed(RequestReceived("unknown", REPLY_TO, b"1", b"deadly"))
    requests = listed(site.dies("a")).requests
    assert len(requests) == MAX_RECENT
    assert request_id("t", REPLY_TO, str(MAX_RECENT + 9).encode(), b"deadly") in requests
    assert request_id("unknown", REPLY_TO, b"1", b"deadly") not in requests


def test_a_device_that_was_only_silent_and_goes_on_condemns_nothing(site: Site) -> None:
    site.ask()
    site.dies("a")
    site.heartbeat("b", Alone(request=ID, payload=PAYLOAD))
    for _ in range(5):
        site.now_s += 1.0
        site.heartbeat("c")
    assert not site.state.cluster.devices["b"].alive
    assert site.refused() == {PAYLOAD}
    site.heartbeat("b")
    assert site.refused() == set()
    assert [device for device, _ in site.state.quarantine.deaths] == ["a"]
