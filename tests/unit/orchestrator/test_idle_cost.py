"""The cost of a heartbeat that changes nothing, in calls: it is the same for every number of devices and tasks.

And what a death doesn't cost, though its plan is about all devices.
"""

from __future__ import annotations

import sys
from types import FrameType
from unittest.mock import Mock

import pytest

from broker.protocol.specs import DeviceSpec
from broker.transport.port import LinkUp
from orchestrator.decide import decide, next_deadline_s
from orchestrator.events import (
    DeviceStateReceived,
    Event,
    HeartbeatReceived,
    PlanFound,
    RequestPlan,
    TaskDeployed,
    Tick,
)
from orchestrator.membership.failure_detector import MAX_SUSPECTS
from orchestrator.planner.solve import solve
from orchestrator.state import Pace, State, initial
from tests.builders import all_of, joined, module, obedient, offline, online, profile

HEAD = module("head", 10)
PACE = Pace(spares=False, review_s=1e6)  # the planner has nothing to do meanwhile


class Fleet:
    """Devices that hold what they are assigned, and say so every second."""

    def __init__(self, devices: int, tasks: int) -> None:
        self.state: State = initial(epoch=1, settle_s=1.5, pace=PACE)
        self.now_s, self.seq = 0.0, 0
        self.names = [f"gw-{number}" for number in range(devices)]
        self.feed(LinkUp(1))
        for name in self.names:
            self.feed(DeviceStateReceived(name, online(1, profile(60))))
            self.feed(self.heartbeat(name))
        for number in range(tasks):
            self.feed(TaskDeployed(joined(f"task-{number}", [module(f"part-{number % 4}", 50)], HEAD)))
        self.now_s = 1.4
        for name in self.names:
            self.feed(self.heartbeat(name))
        self.now_s = 1.5
        self.feed(Tick())
        for _ in range(3):
            self.all_report()

    def feed(self, event: Event) -> int:
        """Decide; returns the number of actions. The plans that are asked for arrive at once."""
        self.state, actions = decide(self.state, event, self.now_s)
        for request in all_of(actions, RequestPlan):
            self.feed(PlanFound(request.ticket, solve(request.problem)))
        return len(actions)

    def heartbeat(self, name: str, compute_s: float = 0.01) -> HeartbeatReceived:
        self.seq += 1
        said = self.state.assignments.get(name)
        return HeartbeatReceived(name, obedient(said, self.seq, compute_s=compute_s))

    def all_report(self) -> int:
        said = 0
        for name in self.names:
            self.now_s += 1.0 / len(self.names)
            said += self.feed(self.heartbeat(name))
        return said

    def holder(self) -> str:
        """A device with an active copy."""
        return next(iter(self.state.placement.roles))


def calls_of(fleet: Fleet, event: Event) -> int:
    """The Python and C functions that are called to decide, and to find the next deadline."""
    calls = 0

    def count(_frame: FrameType, kind: str, _argument: object) -> None:
        nonlocal calls
        calls += kind in {"call", "c_call"}

    fleet.now_s += 0.001
    sys.setprofile(count)
    try:
        state, actions = decide(fleet.state, event, fleet.now_s)
        next_deadline_s(state)
    finally:
        sys.setprofile(None)
    assert actions == []
    return calls


@pytest.mark.parametrize("compute_s", [0.01, 0.011])
def test_a_heartbeat_that_changes_nothing_costs_the_same_for_every_number_of_devices_and_tasks(
    compute_s: float,
) -> None:
    """Measured seconds that waver don't count as a change either."""
    costs = set()
    for devices, tasks in ((10, 5), (10, 100), (300, 5), (300, 100)):
        fleet = Fleet(devices, tasks)
        assert fleet.all_report() == 0
        name = fleet.holder()
        fleet.feed(Tick())
        fleet.feed(fleet.heartbeat(name))
        costs.add(calls_of(fleet, fleet.heartbeat(name, compute_s)))
    assert len(costs) == 1, costs
    assert max(costs) < 1_000


@pytest.mark.parametrize("suspects", [{}, {"nobody": 0.0}, {"gw-3": 1000.0}])
def test_a_heartbeat_costs_the_same_however_many_devices_another_one_suspects(suspects: dict[str, float]) -> None:
    costs = set()
    for devices in (MAX_SUSPECTS + 2, 300):
        fleet = Fleet(devices, 5)
        name, liar = fleet.holder(), fleet.names[-1]
        fleet.feed(Tick())
        fleet.feed(suspecting(fleet.heartbeat(liar), dict.fromkeys(fleet.names[:-1], 0.0)))
        assert sum(bool(device.timeout_reports) for device in fleet.state.cluster.devices.values()) == MAX_SUSPECTS
        fleet.feed(fleet.heartbeat(name))
        costs.add(calls_of(fleet, suspecting(fleet.heartbeat(name), suspects)))
    assert len(costs) == 1, costs


def suspecting(said: HeartbeatReceived, suspects: dict[str, float]) -> HeartbeatReceived:
    return HeartbeatReceived(said.device, said.message.model_copy(update={"suspects": suspects}))


def test_a_death_has_no_spec_made_again_of_a_device_that_reports_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(50, 5)
    assert all(device.spec for device in fleet.state.cluster.devices.values())
    assert fleet.all_report() == 0
    made = Mock(wraps=DeviceSpec)
    monkeypatch.setattr("orchestrator.membership.device.DeviceSpec", made)
    dead = fleet.holder()
    assert fleet.feed(DeviceStateReceived(dead, offline(1))) > 0
    assert dead not in fleet.state.placement.where.values()
    assert {call.kwargs["id"] for call in made.call_args_list} <= {dead}
