"""The bounds of all that an orchestrator keeps of strangers' messages; honest ones lose nothing."""

from __future__ import annotations

from typing import Any

import pytest

from broker.protocol.messages import DeviceState, HeldModule
from broker.protocol.sizes import show_bytes
from broker.protocol.specs import TaskSpec
from broker.transport.port import LinkUp
from orchestrator import decide as rules
from orchestrator import events, reports
from orchestrator.decide import decide
from orchestrator.leadership import orders
from orchestrator.leadership.orders import NO_ORDERS, StandbyCopy, record
from orchestrator.membership import device as one_device
from orchestrator.membership import doubts, failure_detector
from orchestrator.placement import deployability, restore
from orchestrator.reports import Reports, When
from orchestrator.state import State, initial
from tests.builders import PREFIX, all_of, chain, heartbeat, module, online


def task(name: str, **fields: Any) -> TaskSpec:
    return chain(name, module("encoder"), **fields)


def led(*happened: events.Event, now_s: float = 1.0) -> State:
    """The state of a leader after these events; it places nothing, for no planner answers."""
    state, _ = decide(initial(epoch=1, settle_s=0.0), LinkUp(1), 0.0)
    for event in happened:
        state, _ = decide(state, event, now_s)
    return state


def test_tasks_are_bounded_in_number_and_the_next_one_hears_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployability, "MAX_TASKS", 3)
    state = led(*(events.TaskDeployed(task(f"t{number}")) for number in range(3)))
    state, actions = decide(state, events.TaskDeployed(task("one-more")), 2.0)
    (published,) = all_of(actions, events.PublishRoute)
    assert published.route.task == "one-more"
    assert published.route.unavailable == "3 tasks are deployed, the most that a site may have; undeploy one"
    assert state.tasks.keys() == {"t0", "t1", "t2"}
    changed, _ = decide(state, events.TaskDeployed(task("t1", weight=2.0)), 3.0)
    assert changed.tasks["t1"].weight == 2.0


def test_tasks_are_bounded_in_bytes_and_the_next_one_hears_why(monkeypatch: pytest.MonkeyPatch) -> None:
    size_bytes = task("t0").size_bytes
    monkeypatch.setattr(deployability, "MAX_TASKS_BYTES", 2 * size_bytes)
    state = led(events.TaskDeployed(task("t0")), events.TaskDeployed(task("t1")))
    state, actions = decide(state, events.TaskDeployed(task("t2")), 2.0)
    (published,) = all_of(actions, events.PublishRoute)
    assert published.route.unavailable is not None
    assert published.route.unavailable.startswith(f"its spec has {show_bytes(size_bytes)}, those of the other tasks ")
    assert state.tasks.keys() == {"t0", "t1"}


def test_refused_tasks_are_bounded_and_the_latest_hears_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_REFUSED", 3)
    state = led(events.TaskDeployed(task("honest")), *(events.TaskRejected(f"x{n}", "it is wrong") for n in range(20)))
    state, actions = decide(state, events.TaskRejected("last", "its spec is wrong"), 2.0)
    assert state.invalid.keys() == {"x18", "x19", "last"}
    assert state.tasks.keys() == {"honest"}
    assert [each.route.unavailable for each in all_of(actions, events.PublishRoute)] == ["its spec is wrong"]
    assert state.routes.keys() <= {"x18", "x19", "last"}, "the routes of the others are cleared"


def test_retained_routes_are_bounded_in_number_and_in_what_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_RETAINED", 5)
    monkeypatch.setattr(rules, "MAX_SERVING", 10)
    serving = {"k1": ("gw-a", "gw-b"), "k2": ("gw-a",)}
    state, _ = decide(initial(epoch=1, settle_s=9.0), LinkUp(1), 0.0)
    state, _ = decide(state, events.TaskDeployed(task("honest"), retained=True), 0.0)
    for number in range(20):
        state, _ = decide(state, events.RetainedRouteReceived(f"x{number}", True, True, serving), 0.1)
    assert (len(state.retained_routes), state.serving_entries) == (5, 10)
    state, _ = decide(state, events.RetainedRouteReceived("honest", True, True, {}), 0.2)
    assert state.retained_routes["honest"].front_door


def test_drains_of_unknown_devices_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_detector, "MAX_DRAINED", 3)
    state = led(events.DeviceStateReceived("gw-a", online()))
    for name in (*(f"x{number}" for number in range(20)), "gw-a"):
        state, _ = decide(state, events.DrainReceived(name, drain=True), 2.0)
    assert state.cluster.drained == {"x0", "x1", "x2", "gw-a"}
    state, _ = decide(state, events.DrainReceived("x0", drain=False), 2.0)
    assert "x0" not in state.cluster.drained


def test_names_that_come_before_the_orders_are_reconciled_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "MAX_NOTED", 5)
    state, _ = decide(initial(epoch=1, settle_s=9.0), LinkUp(1), 0.0)
    for number in range(20):
        for strange in (
            events.TaskUndeployed(f"x{number}"),
            events.DrainReceived(f"x{number}", drain=False, retained=True),
        ):
            state, _ = decide(state, strange, 0.1)
    assert (len(state.delivered.tasks), len(state.delivered.drains)) == (5, 5)
    state, _ = decide(state, events.TaskDeployed(task("honest"), retained=True), 0.2)
    assert "honest" in state.delivered.tasks


def test_what_births_and_heartbeats_name_is_bounded_and_an_honest_device_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failure_detector, "MAX_ENTRIES", 1_000)
    mine = {f"m{n}": HeldModule(module="m", state="ready") for n in range(80)}
    state = led(
        events.DeviceStateReceived("gw-a", online()), events.HeartbeatReceived("gw-a", heartbeat(1, modules=mine))
    )
    many = {f"k{n}": HeldModule(module="m", state="ready") for n in range(500)}
    for number in range(30):
        name = f"x{number}"
        birth = DeviceState.model_validate(online().model_dump() | {"tasks": [f"t{n}" for n in range(10)]})
        state, _ = decide(state, events.DeviceStateReceived(name, birth), 1.0)
        state, _ = decide(state, events.HeartbeatReceived(name, heartbeat(1, modules=many, cached={"c": 1.0})), 1.0)
    strange = [device for name, device in state.cluster.devices.items() if name != "gw-a"]
    assert state.cluster.entries == sum(map(one_device.entries, state.cluster.devices.values()))
    assert state.cluster.entries <= 1_000 + 30 * one_device.MIN_ENTRIES
    assert min(len(device.modules) for device in strange) == one_device.MIN_ENTRIES
    wide = DeviceState.model_validate(online().model_dump() | {"tasks": [f"t{n}" for n in range(1_000)]})
    state, _ = decide(state, events.DeviceStateReceived("wide", wide), 1.0)
    assert "wide" not in state.cluster.devices
    state, _ = decide(state, events.HeartbeatReceived("gw-a", heartbeat(2, modules=mine)), 1.1)
    assert state.cluster.devices["gw-a"].modules.keys() == mine.keys()


def test_failures_that_a_device_invents_are_bounded_and_gone_with_it() -> None:
    state, notes = led(events.DeviceStateReceived("evil", online())), 0
    for seq in range(1, 6):
        held = {f"k{seq}-{n}": HeldModule(module="m", state="failed", error="x" * 5_000) for n in range(900)}
        state, actions = decide(state, events.HeartbeatReceived("evil", heartbeat(seq, modules=held)), 1.0)
        notes = max(notes, len(all_of(actions, events.Note)))
    evil = state.cluster.devices["evil"]
    assert len(evil.backoffs) <= one_device.MAX_MODULES
    assert max(len(backoff.error) for backoff in evil.backoffs.values()) == 1_000
    assert notes <= 10, "its heartbeats don't fill the log"
    state, _ = decide(state, events.DeviceStateReceived("evil", DeviceState(status="offline", session=1)), 1.0)
    assert not state.cluster.devices["evil"].backoffs


def test_reports_about_one_device_are_bounded() -> None:
    reports: doubts.TimeoutReports = {}
    for number in range(100):
        reports = doubts.with_report(reports, f"x{number}", 0.0, float(number))
    assert len(reports) == doubts.MAX_REPORTS
    assert f"x{99}" in reports


def test_earlier_revisions_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    size_bytes = task("t0", weight=1.5).size_bytes
    monkeypatch.setattr(orders, "MAX_EARLIER_BYTES", 6 * size_bytes)
    kept = NO_ORDERS
    for weight in range(1, 6):
        tasks = {f"t{number}": task(f"t{number}", weight=float(weight)) for number in range(3)}
        kept = record(kept, tasks, (), epoch=1, session=None)
    assert 0 < sum(len(specs) - 1 for specs in kept.revisions.values()) <= 6
    assert all(kept.revisions[name][0].weight == 5.0 for name in tasks)


def test_a_standby_keeps_a_bounded_part_of_what_it_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    size_bytes = task("t-10").size_bytes
    monkeypatch.setattr(orders, "MAX_HEARD", 8)
    monkeypatch.setattr(orders, "MAX_DRAINED", 4)
    monkeypatch.setattr(orders, "MAX_TASKS_BYTES", 5 * size_bytes)
    monkeypatch.setattr(orders, "MAX_HEARD_BYTES", 20 * size_bytes)
    own = record(NO_ORDERS, {"honest": task("honest")}, (), epoch=1, session=None)
    copy = StandbyCopy(own, 1.0).on_event(LinkUp(1), 0.0)
    for number in range(10, 40):
        name = f"t-{number}"
        said: list[orders.CopiedEvent] = [
            events.TaskDeployed(task(name)),
            events.DrainReceived(name, drain=True),
            events.RevisionsListed(name, tuple(f"{n:012x}" for n in range(100))),
            *(
                events.RevisionReceived(name, spec.revision, spec)
                for spec in (task(name, weight=float(weight)) for weight in range(1, 20))
            ),
        ]
        for event in said:
            copy = copy.on_event(event, 1.0)
    copy = copy.on_event(events.TaskDeployed(task("honest", weight=2.0)), 1.0)
    assert copy.tasks["honest"] == task("honest", weight=2.0)
    assert (len(copy.tasks), len(copy.drained), len(copy.listed)) == (9, 4, 8)
    assert sum(spec is not None for spec in copy.tasks.values()) <= 6
    assert copy.specs_bytes == sum(spec.size_bytes for specs in copy.specs.values() for spec in specs.values())
    assert copy.specs_bytes <= 20 * size_bytes
    assert max(map(len, copy.specs.values())) <= orders.HEARD_REVISIONS
    assert max(len(listed.revisions) for listed in copy.listed.values()) == orders.REVISIONS_KEPT


def test_revisions_that_strangers_publish_are_bounded_until_they_are_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MAX_HEARD", 5)
    made, state = Reports(PREFIX), led()
    for number in range(20):
        event = events.RevisionReceived("t", f"{number:012x}", task("t"))
        made.on_event(state, event, state, [], When(1.0, 1.0))
    assert len([each for each in made.sweep(state, When(1.0, 1.0)) if "/revisions/" in each.topic]) == 5
