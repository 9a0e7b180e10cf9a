"""A device that lies, in every interleaving with a site's life: it harms only itself.

The machine is that of ``test_reconciler``, with one more device. It speaks under its own name, from the past and the
future: births and wills of any session, heartbeats of any epoch and generation with modules that it doesn't have,
suspicions against everybody, drains of itself. After each of its messages the term, the tasks, the other devices, and
all that is published for others are what they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from broker.protocol.messages import MAX_FENCE, DeviceState, Heartbeat, HeldModule, Route
from broker.protocol.topics import DEVICE_ASSIGNMENT
from orchestrator.decide import decide
from orchestrator.events import (
    CheckAnswered,
    CheckDevice,
    Clear,
    DeviceStateReceived,
    DrainReceived,
    EndPlanning,
    Event,
    HeartbeatReceived,
    Note,
    PublishAssignment,
    PublishRoute,
    PublishState,
    RequestPlan,
    RequestRebirth,
    Tick,
)
from orchestrator.leadership.leader import announce_leadership
from tests.builders import profile
from tests.properties.test_reconciler import DEVICES, LONG, MODULES, SETTINGS, Reconciler

EVIL = "evil"
numbers = st.sampled_from([0, 1, 2, 3, 5, 1000, MAX_FENCE - 1, MAX_FENCE])
statuses = st.sampled_from(["online", "draining", "offline"])
claims = st.dictionaries(st.sampled_from(sorted(MODULES)), st.sampled_from(["ready", "loading", "failed"]))
suspects = st.sets(st.sampled_from([*DEVICES, EVIL, "nobody"]))
FOR_ITSELF = PublishAssignment | RequestRebirth


class HostileDevice(Reconciler):
    """See the file's head. The device is too small for any module: what it gets would be its own."""

    @rule(status=statuses, session=numbers, seq=numbers)
    def it_lies_about_its_state(self, status: str, session: int, seq: int) -> None:
        said = DeviceState.model_validate({"status": status, "session": session, "profile": profile(1)})
        self.lie(DeviceStateReceived(EVIL, said))
        self.lie(HeartbeatReceived(EVIL, Heartbeat(session=session, seq=seq, epoch=0, generation=0)))

    @rule(fences=st.tuples(numbers, numbers, numbers, numbers), claims=claims, size_bytes=numbers, suspects=suspects)
    def it_lies_in_a_heartbeat(
        self, fences: tuple[int, int, int, int], claims: dict[str, str], size_bytes: int, suspects: set[str]
    ) -> None:
        session, seq, epoch, generation = fences
        held = {
            MODULES[part].key: HeldModule.model_validate(
                {"module": "m", "state": state, "memory_bytes": size_bytes, "compute_s": 0.0}
            )
            for part, state in claims.items()
        }
        message = Heartbeat(
            session=session,
            seq=seq,
            epoch=epoch,
            generation=generation,
            modules=held,
            suspects=dict.fromkeys(suspects, 0.0),
        )
        self.lie(HeartbeatReceived(EVIL, message))

    @rule(request=st.sampled_from(["check-0", "check-1"]))
    def it_answers_what_it_was_not_asked(self, request: str) -> None:
        self.lie(CheckAnswered(EVIL, request))

    @rule(drain=st.booleans())
    def it_is_drained(self, *, drain: bool) -> None:
        event = DrainReceived(EVIL, drain=drain)
        self.drained.pop(EVIL, None)
        if drain:
            self.drained[EVIL] = event
        self.lie(event, of_an_operator=True)

    def lie(self, event: Event, *, of_an_operator: bool = False) -> None:
        self.feed(Tick())  # what time alone brings
        before = self.state
        self.state, actions = decide(before, event, self.now_s)
        self._deliver(actions)
        after = self.state
        assert (after.epoch, after.generation, after.tasks) == (before.epoch, before.generation, before.tasks)
        assert of_an_operator or after.orders == before.orders
        assert (after.invalid, after.footprints) == (before.invalid, before.footprints)
        assert after.placement.where == before.placement.where
        has_joined = after.cluster.trusted > before.cluster.trusted  # once: then most may not be silent any more
        for device in DEVICES:
            known, now = before.cluster.devices.get(device), after.cluster.devices.get(device)
            if known is None or now is None:
                assert known is now
                continue
            if has_joined and known.health == "suspect":  # it has more time to be heard
                assert now == replace(known, heard_s=max(known.heard_s, now.heard_s), timeout_reports={})
                continue
            assert now == replace(known, timeout_reports=now.timeout_reports)
            assert (now.fitness, now.is_accused) == (known.fitness, known.is_accused)
            assert now.timeout_reports.keys() - {EVIL} == known.timeout_reports.keys() - {EVIL}
        assert others(after.assignments) == others(before.assignments)
        at_its_door = {
            task for routes in (before.routes, after.routes) for task in routes if EVIL in doors(routes[task])
        }
        assert as_others_have_them(after.routes, at_its_door) == as_others_have_them(before.routes, at_its_door)
        for action in actions:
            if isinstance(action, FOR_ITSELF):
                assert action.device == EVIL
            elif isinstance(action, Clear):
                assert (action.topic, action.name) == (DEVICE_ASSIGNMENT, EVIL)
            elif isinstance(action, PublishState):
                assert [action] == announce_leadership(after), "the term as it is, once more"
            elif isinstance(action, PublishRoute):
                assert action.route.task in at_its_door
            else:
                assert isinstance(action, Note | CheckDevice | RequestPlan | EndPlanning), action
        if self.is_prompt:
            self.the_plan_arrives()


def doors(route: Route) -> tuple[str, ...]:
    return (*route.front_door, *route.second_door)


def as_others_have_them(routes: Mapping[str, Route], at_its_door: set[str]) -> dict[str, Route]:
    """The routes without what may change in them.

    A reason why a task is unavailable names every device, with what it lacks. And the device may get requests to
    coordinate, as any that joins, for that needs no memory: as the backup coordinator of a task with a redundancy of 2,
    and as the front door where else only devices could be that are there sometimes. Such doors have their own group.
    """
    return {
        task: route.model_copy(
            update={"unavailable": route.unavailable and "a reason"}
            | ({"front_door": (), "second_door": (), "group": 0} if task in at_its_door else {})
        )
        for task, route in routes.items()
    }


def others(assignments: object) -> dict[str, object]:
    assert isinstance(assignments, dict)
    return {device: said for device, said in assignments.items() if device != EVIL}


class LongHostileDevice(HostileDevice):
    """The same machine, for a run that takes a quarter of an hour."""


TestHostileDevice = HostileDevice.TestCase
TestHostileDevice.settings = settings(SETTINGS, max_examples=20)
TestLongHostileDevice = pytest.mark.long(pytest.mark.timeout(7200)(LongHostileDevice.TestCase))
TestLongHostileDevice.settings = LONG
