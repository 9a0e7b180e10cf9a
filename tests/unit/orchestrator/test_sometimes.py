"""Devices that are on only sometimes: used while they are there, and missed by nobody when they go."""

from __future__ import annotations

from typing import Any

from broker.protocol.messages import AssignedModule, DeviceState, HeldModule, Route
from broker.protocol.specs import Availability, TaskSpec
from broker.transport.port import LinkUp
from orchestrator.events import Action, DeviceStateReceived, Event, HeartbeatReceived, Note, TaskDeployed, Tick
from orchestrator.state import initial
from tests import builders
from tests.builders import all_of, chain, module, offline, profile
from tests.planned import decide_and_plan

VISION = module("vision", memory_bytes=60, flops=30e9)
HEAD = module("head", memory_bytes=10, flops=1e9)
CLASSIFY = chain("classify", VISION, HEAD)
TWICE = CLASSIFY.model_copy(update={"redundancy": 2})


class Site:
    """A leader, and devices that do what they are assigned while they are on."""

    def __init__(self, *tasks: TaskSpec) -> None:
        self.state, self.now_s, self.seq = initial(epoch=1), 0.0, 0
        self.on: dict[str, int] = {}  # device -> its session
        self.held: dict[str, dict[str, HeldModule]] = {}
        self.sessions = 0
        self.happened: list[Action] = []
        self.feed(LinkUp(1))
        self.to_deploy = tasks

    def feed(self, event: Event) -> None:
        self.state, actions = decide_and_plan(self.state, event, self.now_s)
        self.happened += actions

    def born(
        self, device: str, memory_bytes: int = 100, *, speed: float = 1e12, availability: Availability = "always"
    ) -> None:
        self.sessions += 1
        self.on[device] = self.sessions
        known = profile(memory_bytes, compute_flops_per_s=speed)
        birth = DeviceState(status="online", session=self.sessions, profile=known, availability=availability)
        self.feed(DeviceStateReceived(device, birth))
        self.heartbeat(device, {})

    def box(self) -> None:
        """The strong box is switched on."""
        self.born("box", 1000, speed=50e12, availability="sometimes")

    def heartbeat(self, device: str, held: dict[str, HeldModule]) -> None:
        self.seq += 1
        said = self.state.assignments.get(device)
        fence: dict[str, Any] = {"epoch": said.epoch, "generation": said.generation} if said else {}
        report = builders.heartbeat(self.seq, self.on[device], modules=held, **fence)
        self.feed(HeartbeatReceived(device, report))

    def pass_s(self, seconds: float, *, loading: tuple[str, ...] = ()) -> None:
        """Time goes; the devices that are on load what they are assigned, but for those that are still loading."""
        for spec in self.to_deploy:
            self.feed(TaskDeployed(spec))
        self.to_deploy = ()
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += 0.5
            self.feed(Tick())
            for device in sorted(self.on):
                state = "loading" if device in loading else "ready"
                if device in self.state.assignments:
                    held = [(each.spec.key, each.module) for each in self.assigned(device)]
                    self.held[device] = {key: HeldModule(module=name, state=state) for key, name in held}
                self.heartbeat(device, self.held.get(device, {}))

    def off(self, device: str = "box") -> None:
        """A device is switched off: the broker publishes its will."""
        self.held.pop(device, None)
        self.feed(DeviceStateReceived(device, offline(self.on.pop(device))))

    def assigned(self, device: str) -> tuple[AssignedModule, ...]:
        said = self.state.assignments.get(device)
        return said.modules if said else ()

    def route(self) -> Route:
        return self.state.routes["classify"]

    def able(self, node: str) -> set[str]:
        return {each.device for each in self.route().nodes[node].devices}

    def notes(self, event: str) -> list[Note]:
        return [note for note in all_of(self.happened, Note) if note.event == event]


def with_box(*tasks: TaskSpec) -> Site:
    """Two gateways that hold all, and a strong box that has been on for a while."""
    site = Site(*tasks)
    for device in ("gw-a", "gw-b"):
        site.born(device)
    site.box()
    site.pass_s(8)
    return site


def test_a_strong_box_runs_a_copy_of_what_it_makes_faster_and_is_no_front_door() -> None:
    site = with_box(CLASSIFY)
    assert {*site.state.placement.where.values()} == {"gw-a"}
    assert site.able("n-vision") == {"gw-a", "box"}
    assert site.route().front_door == ("gw-a",)
    assert {each.why for each in site.assigned("box")} == {"serves beside gw-a while it is on"}
    assert {each.role for each in site.assigned("gw-b")} == {"standby"}, "as if the box weren't there"


def test_when_it_goes_the_route_falls_back_at_once_and_nothing_else_changes() -> None:
    for silently in (False, True):
        site = with_box(CLASSIFY)
        before, assigned = site.state.placement.where, (site.assigned("gw-a"), site.assigned("gw-b"))
        site.happened.clear()
        if silently:
            site.on.pop("box")
            site.pass_s(4)
        else:
            site.off()
        assert (site.able("n-vision"), site.route().complete) == ({"gw-a"}, True)
        site.pass_s(10)
        assert site.state.placement.where == before
        assert (site.assigned("gw-a"), site.assigned("gw-b")) == assigned
        assert not site.notes("took_over")
        assert not site.notes("placed")


def test_it_comes_and_goes_every_minute_and_is_used_each_time_without_probation() -> None:
    site = with_box(CLASSIFY)
    for _ in range(5):
        site.off()
        site.pass_s(30)
        site.box()
        site.pass_s(5)
        assert site.able("n-vision") == {"gw-a", "box"}
        assert site.state.cluster.devices["box"].doubt is None


def test_a_module_that_only_the_box_can_hold_stands_there_and_the_others_coordinate() -> None:
    large = module("large", memory_bytes=500, flops=1e9)
    task = chain("classify", large, HEAD)
    site = with_box(task)
    assert site.state.placement.where[large.key] == "box"
    assert site.state.placement.where[HEAD.key] != "box"
    assert site.route().complete
    assert site.route().front_door[0] in {"gw-a", "gw-b"}
    site.off()
    site.pass_s(1)
    why = site.route().unavailable
    assert why is not None
    assert "box: it is away: it is on only sometimes" in why
    site.box()
    site.pass_s(2)
    assert site.route().complete


def test_a_module_leaves_the_box_for_a_device_that_is_always_on_once_it_is_loaded_there() -> None:
    site = Site(CLASSIFY)
    site.born("gw-a", 20)
    site.box()
    site.pass_s(8)
    assert site.state.placement.where[VISION.key] == "box"
    site.born("gw-b", 100)
    site.pass_s(3, loading=("gw-b",))
    assert site.able("n-vision") == {"box"}, "it serves until the other is ready"
    site.pass_s(2)
    assert site.state.placement.where[VISION.key] == "gw-b"
    assert "box" in site.able("n-vision")
    site.off()
    assert site.route().complete


def test_it_is_the_backup_coordinator_only_where_no_device_that_is_always_on_can_be() -> None:
    site = with_box(TWICE)
    assert (site.route().front_door, site.route().second_door) == (("gw-a",), ("gw-b",))
    site.off("gw-b")
    site.pass_s(1)
    assert (site.route().front_door, site.route().second_door) == (("gw-a",), ("box",))
    site.born("gw-b")
    site.pass_s(8)
    assert (site.route().front_door, site.route().second_door) == (("gw-a",), ("gw-b",))


def test_it_takes_over_from_a_dead_device_and_gives_back_when_another_one_is_ready() -> None:
    site = Site(CLASSIFY)
    site.born("gw-a")
    site.box()
    site.pass_s(8)
    site.off("gw-a")
    assert (site.able("n-vision"), site.route().front_door) == ({"box"}, ("box",))
    site.born("gw-b")
    site.pass_s(3, loading=("gw-b",))
    assert (site.able("n-vision"), site.route().front_door) == ({"box"}, ("gw-b",))
    site.pass_s(8)
    assert {*site.state.placement.where.values()} == {"gw-b"}
    assert site.able("n-vision") == {"gw-b", "box"}


def test_the_end_of_boxes_is_no_mass_departure() -> None:
    site = Site(CLASSIFY)
    for device in ("gw-a", "gw-b"):
        site.born(device)
    for device in ("pc-1", "pc-2", "pc-3", "pc-4"):
        site.born(device, availability="sometimes")
    site.pass_s(8)
    for device in ("pc-1", "pc-2", "pc-3", "pc-4"):
        site.off(device)
    assert site.state.cluster.mass_departure is None


def test_the_leader_that_starts_again_keeps_the_copies_of_the_box() -> None:
    before = with_box(CLASSIFY)
    site = Site(CLASSIFY)
    site.held = before.held
    for device in ("gw-a", "gw-b"):
        site.born(device)
    site.box()
    site.pass_s(2)
    assert {*site.state.placement.where.values()} == {"gw-a"}
    assert site.able("n-vision") == {"gw-a", "box"}
