"""A simulated device reports what an agent would, from the messages of the orchestrator and the time alone."""

from __future__ import annotations

from broker.protocol.messages import AssignedModule, Assignment
from broker.protocol.specs import ModuleSpec
from s2m3.bench.fleet.device import CHANGING, DRIFT, SimulatedDevice
from tests.builders import device, module

ENCODER, HEAD = module("encoder", memory_bytes=10, flops=20e9), module("head", memory_bytes=3)


def simulated() -> SimulatedDevice:
    made = SimulatedDevice(device("gw-a", speed=10e9), load_s=0.5, cached={HEAD.key: HEAD})
    made.begin_session(7)
    return made


def assignment(*modules: ModuleSpec, epoch: int = 1, generation: int = 1) -> Assignment:
    assigned = tuple(AssignedModule(module="a/module", spec=spec) for spec in modules)
    return Assignment(epoch=epoch, generation=generation, modules=assigned)


def test_an_assigned_module_loads_for_the_stated_time_and_is_then_ready() -> None:
    made = simulated()
    assert made.obey(assignment(ENCODER, HEAD), 10.0)
    assert {key: held.state for key, held in made.next_heartbeat().modules.items()} == {
        ENCODER.key: "loading",
        HEAD.key: "loading",
    }
    assert made.next_load_s == 10.5
    assert not made.finish_loads(10.4)
    assert made.finish_loads(10.5)
    assert made.next_load_s is None
    heartbeat = made.next_heartbeat()
    held = heartbeat.modules[ENCODER.key]
    assert (held.state, held.module, held.load_s) == ("ready", "a/module", 0.5)
    assert held.compute_s is not None
    assert abs(held.compute_s - 2.0) <= 2.0 * DRIFT
    assert heartbeat.memory_used_bytes == 13
    assert (made.begun_loads, made.abandoned_loads) == (2, 0)


def test_a_module_that_is_not_assigned_any_more_is_dropped_and_stays_on_the_disk() -> None:
    made = simulated()
    made.obey(assignment(ENCODER, HEAD), 0.0)
    made.finish_loads(1.0)
    assert made.obey(assignment(HEAD, generation=2), 2.0)
    heartbeat = made.next_heartbeat()
    assert heartbeat.modules.keys() == {HEAD.key}
    assert heartbeat.cached.keys() == {ENCODER.key}
    assert (heartbeat.epoch, heartbeat.generation) == (1, 2)
    assert made.begun_loads == 2


def test_a_load_that_an_assignment_ends_is_counted_as_abandoned() -> None:
    made = simulated()
    made.obey(assignment(ENCODER), 0.0)
    made.obey(assignment(generation=2), 0.1)
    assert made.abandoned_loads == 1
    assert not made.finish_loads(1.0)
    assert made.next_heartbeat().modules == {}


def test_an_older_assignment_changes_nothing() -> None:
    made = simulated()
    made.obey(assignment(ENCODER, epoch=2, generation=1), 0.0)
    assert not made.obey(assignment(HEAD, epoch=1, generation=9), 0.0)
    assert not made.obey(assignment(ENCODER, epoch=2, generation=1), 0.0), "the same one again"
    heartbeat = made.next_heartbeat()
    assert heartbeat.modules.keys() == {ENCODER.key}
    assert heartbeat.epoch == 2


def test_a_new_session_counts_heartbeats_again_and_keeps_the_modules() -> None:
    made = simulated()
    made.obey(assignment(ENCODER), 0.0)
    assert [made.next_heartbeat().seq for _ in range(3)] == [1, 2, 3]
    made.begin_session(8)
    birth = made.birth
    assert (birth.status, birth.session) == ("online", 8)
    assert birth.profile is not None
    assert birth.profile.memory_bytes == made.spec.memory_bytes
    heartbeat = made.next_heartbeat()
    assert (heartbeat.session, heartbeat.seq, list(heartbeat.modules)) == (8, 1, [ENCODER.key])


def test_a_device_that_lost_its_power_holds_nothing_and_obeys_any_assignment() -> None:
    made = simulated()
    made.obey(assignment(ENCODER, epoch=5, generation=5), 0.0)
    made.finish_loads(1.0)
    made.lose_power()
    heartbeat = made.next_heartbeat()
    assert (heartbeat.modules, heartbeat.memory_used_bytes, heartbeat.epoch) == ({}, 0, 0)
    assert heartbeat.cached.keys() == {ENCODER.key, HEAD.key}
    assert made.obey(assignment(HEAD), 2.0)


def test_one_in_a_hundred_measured_values_changes_with_each_heartbeat() -> None:
    made = simulated()
    parts = [module(f"part-{number}") for number in range(50)]
    made.obey(assignment(*parts), 0.0)
    made.finish_loads(1.0)
    before, changed = made.next_heartbeat(), 0
    for _ in range(200):
        after = made.next_heartbeat()
        changed += sum(after.modules[key] != held for key, held in before.modules.items())
        before = after
    assert 0.5 * CHANGING < changed / (200 * 50) < 2 * CHANGING
