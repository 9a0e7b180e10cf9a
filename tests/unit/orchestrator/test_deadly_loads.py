"""Devices that die while they load a module: after two no other one tries; one that comes back may clear it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from broker.protocol.codec import load_digest
from broker.protocol.messages import DeviceProfile, DeviceState, HeldModule
from broker.transport.port import LinkUp
from orchestrator.decide import next_deadline_s
from orchestrator.events import (
    Action,
    DeviceStateReceived,
    Event,
    HeartbeatReceived,
    PublishQuarantine,
    TaskDeployed,
    Tick,
)
from orchestrator.membership.deadly_loads import TOLD_S, UNTOLD_S
from orchestrator.state import State, initial
from tests.builders import all_of, chain, module, obedient
from tests.planned import decide_and_plan

WEIGHTS = module("x", memory_bytes=10)
TASK = chain("t", WEIGHTS)
DEVICES = ("a", "b", "c")


class Site:
    """A leader with three devices, each of which could hold the one module."""

    def __init__(self) -> None:
        self.state: State = initial(epoch=1, heartbeat_interval_s=1.0, settle_s=1.5)
        self.now_s, self.seq, self.sessions = 0.0, 0, dict[str, int]()
        self.feed(LinkUp(1))
        for device in DEVICES:
            self.born(device)
        self.feed(TaskDeployed(TASK))
        self.later(1.5)

    def feed(self, event: Event) -> list[Action]:
        self.state, actions = decide_and_plan(self.state, event, self.now_s)
        return actions

    def later(self, seconds: float) -> None:
        self.now_s += seconds
        self.feed(Tick())

    def born(self, device: str, **fields: Any) -> None:
        self.sessions[device] = self.sessions.get(device, 0) + 1
        profile = DeviceProfile(memory_bytes=1000, compute_flops_per_s=1e9, bandwidth_bits_per_s=100e6, latency_s=0.001)
        birth = DeviceState(status="online", session=self.sessions[device], profile=profile, **fields)
        self.feed(DeviceStateReceived(device, birth))
        self.reports(device)

    def reports(self, device: str, state: Any = "loading") -> None:
        self.seq += 1
        said = self.state.assignments.get(device)
        held = {each.spec.key: HeldModule(module=each.module, state=state) for each in said.modules} if said else {}
        self.feed(HeartbeatReceived(device, obedient(said, self.seq, self.sessions[device], modules=held)))

    def home(self) -> str | None:
        return self.state.placement.where.get(WEIGHTS.key)

    def dies_loading(self) -> str:
        """The device that has to load the module ends; its name."""
        device = self.home()
        assert device is not None
        self.now_s += 0.1
        self.feed(DeviceStateReceived(device, DeviceState(status="offline", session=self.sessions[device])))
        return device

    def passes(self, seconds: float) -> None:
        """Time passes, and who lives sends heartbeats."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.later(0.9)
            for device in DEVICES:
                if self.state.cluster.devices[device].status == "online":
                    self.reports(device, "ready")

    def why(self) -> str:
        return self.state.routes["t"].unavailable or ""


DEADLY: dict[str, Any] = {"died_with": (load_digest(WEIGHTS.key),), "machine_up_s": 9e9}


def test_a_module_whose_load_ended_two_devices_is_not_tried_on_a_third() -> None:
    site = Site()
    dead = {site.dies_loading(), site.dies_loading()}
    assert len(dead) == 2
    assert site.home() is None
    assert "2 devices died while they loaded x" in site.why()
    assert not [last for last in site.state.assignments.values() if last.modules]
    for device in sorted(dead):
        site.born(device, **DEADLY)
    site.passes(UNTOLD_S + 10)
    assert site.home() is None, "both said that it was the load"
    assert next_deadline_s(site.state) is not None
    site.passes(TOLD_S)
    assert site.home() is not None, "it is tried again"


def test_after_one_death_others_may_load_it_and_the_dead_one_when_its_time_is_over() -> None:
    site = Site()
    dead = site.dies_loading()
    assert site.home() not in {None, dead}
    site.reports(str(site.home()), "ready")
    site.born(dead, **DEADLY)
    assert site.state.load_deaths[WEIGHTS.key].keys() == {dead}
    assert site.state.routes["t"].complete
    site.passes(TOLD_S + 10)
    assert not site.state.load_deaths


@pytest.mark.parametrize(
    "birth",
    [{"died_with": (), "machine_up_s": 9e9}, {"died_with": None, "machine_up_s": 0.01}, {"died_with": ("0" * 32,)}],
    ids=["killed", "power cut", "of a request"],
)
def test_a_device_that_died_of_something_else_clears_the_module(birth: dict[str, Any]) -> None:
    site = Site()
    site.dies_loading()
    second = site.dies_loading()
    assert site.home() is None
    site.now_s += 2.0
    site.born(second, **birth)
    assert site.home() is not None


def test_devices_that_never_come_back_hold_it_up_for_a_minute() -> None:
    site = Site()
    site.dies_loading()
    site.dies_loading()
    site.passes(UNTOLD_S + 1)
    assert site.home() is not None


def test_one_device_alone_takes_no_module_from_the_others_however_often_it_dies() -> None:
    site = Site()
    first = site.dies_loading()
    for _ in range(5):
        site.born(first, **DEADLY)
        site.now_s += 1.0
        for other in set(DEVICES) - {first}:
            site.reports(other)
        site.feed(DeviceStateReceived(first, DeviceState(status="offline", session=site.sessions[first])))
    assert site.home() not in {None, first}
    assert site.state.load_deaths[WEIGHTS.key].keys() == {first}


def test_copies_that_are_ready_go_on() -> None:
    site = Site()
    home = str(site.home())
    site.reports(home, "ready")
    assert site.state.routes["t"].complete
    others = [device for device in DEVICES if device != home]
    said = site.state.assignments[home]
    for device in others:  # as if they were to get further copies
        last = said.model_copy()
        site.state = replace(
            site.state,
            assignments={**site.state.assignments, device: last},
            assigned_s={**site.state.assigned_s, device: site.now_s},
        )
        site.now_s += 0.1
        site.feed(DeviceStateReceived(device, DeviceState(status="offline", session=site.sessions[device])))
    assert len(site.state.load_deaths[WEIGHTS.key]) == 2
    assert site.state.routes["t"].complete


def test_the_digest_of_a_load_is_no_payload_for_the_agents() -> None:
    site = Site()
    dead = [site.dies_loading(), site.dies_loading()]
    for device in dead:
        profile = DeviceProfile(memory_bytes=1000, compute_flops_per_s=1e9, bandwidth_bits_per_s=100e6, latency_s=0.001)
        birth = DeviceState(status="online", session=site.sessions[device] + 1, profile=profile, **DEADLY)
        actions = site.feed(DeviceStateReceived(device, birth))
        assert not [each for each in all_of(actions, PublishQuarantine) if each.message.refused]
    assert not site.state.quarantine.refused
    assert not site.state.quarantine.against


def test_a_device_that_was_only_silent_while_it_loaded_and_goes_on_is_not_accused_of_anything() -> None:
    """Such as a small box whose processor the load takes, or one in whose name another client said that it ended."""
    site = Site()
    device = site.home()
    assert device is not None
    site.later(0.5)
    site.reports(device)
    for _ in range(4):
        site.later(1.0)
        for other in set(DEVICES) - {device}:
            site.reports(other, "ready")
    assert not site.state.cluster.devices[device].alive
    assert site.state.load_deaths[WEIGHTS.key].keys() == {device}
    site.reports(device)
    assert site.state.cluster.devices[device].alive
    assert not site.state.load_deaths
