"""The judgement of a run, the drawn site, and the records of the operator's session, without any process."""

from __future__ import annotations

from typing import Any

import pytest

from broker.protocol import topics
from broker.protocol.codec import encode
from s2m3.bench.fleet.measure import needless, reasons
from s2m3.bench.fleet.packets import Message
from s2m3.bench.fleet.processes import Cores, available_cores, divide
from s2m3.bench.fleet.sessions import Sessions
from s2m3.bench.fleet.site import LARGEST_BYTES, LARGEST_OWN_BYTES, draw_cached, draw_devices, draw_tasks
from s2m3.bench.fleet.watch import Move, Watch
from tests.builders import PREFIX, encoder_route

GOOD: dict[str, Any] = {
    "all_routed_s": 1.0,
    "valid": True,
    "heartbeats": {"sent": 10, "late": 0, "late_above_s": 0.5},
    "rerouted_s": 0.1,
    "broker_restart": {"moves": 0, "loads": 0, "leaders": 0},
    "power_up": {"settled_s": 12.0, "needless_moves": 0},
}


def test_a_run_holds_if_everything_was_served_and_nothing_moved_without_need() -> None:
    assert reasons(GOOD) == []
    assert reasons({key: GOOD[key] for key in ("all_routed_s", "valid", "heartbeats")}) == [], "without failures"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"valid": False, "heartbeats": GOOD["heartbeats"] | {"late": 3}},
            "invalid: the simulator itself sent 3 of 10",
        ),
        ({"all_routed_s": None}, "not all tasks were routed within"),
        ({"rerouted_s": None}, "the tasks of a dead device were not routed"),
        ({"broker_restart": {"moves": 1, "loads": 0, "leaders": 0}}, "a restart of the broker moved modules"),
        ({"broker_restart": {"moves": 0, "loads": 2, "leaders": 0}}, "a restart of the broker moved modules"),
        ({"broker_restart": {"moves": 0, "loads": 0, "leaders": 1}}, "a restart of the broker moved modules"),
        ({"power_up": {"settled_s": None, "needless_moves": 0}}, "not all tasks were routed after the power-up"),
        ({"power_up": {"settled_s": 12.0, "needless_moves": 2}}, "the power-up made 2 needless moves"),
    ],
)
def test_a_run_does_not_hold_for_a_reason(change: dict[str, Any], reason: str) -> None:
    (found,) = reasons(GOOD | change)
    assert found.startswith(reason)


def test_a_move_is_needless_if_its_device_was_there_before_the_module_was_placed() -> None:
    move = Move("key", "gw-a", "gw-b", at_s=40.0, since_s=10.0)
    assert needless([move], {"gw-b": 5.0}) == 1
    assert needless([move], {"gw-b": 9.5}) == 0, "born while the module was placed"
    assert needless([move], {"gw-b": 20.0}) == 0
    assert needless([], {}) == 0


def test_a_round_of_moves_is_explained_by_one_new_device() -> None:
    born_s = {"gw-b": 5.0, "gw-c": 20.0}
    to_known = Move("key", "gw-a", "gw-b", at_s=40.0, since_s=10.0)
    to_new = Move("other", "gw-a", "gw-c", at_s=40.5, since_s=10.0)
    later = Move("key", "gw-b", "gw-a", at_s=70.0, since_s=40.0)
    assert needless([to_new, to_known], born_s) == 0
    assert needless([to_new, to_known, later], born_s | {"gw-a": 1.0}) == 1


def test_a_second_core_is_for_the_broker_and_the_simulator() -> None:
    both = divide([3, 2])
    assert both == Cores(orchestrator=frozenset({2}), others=frozenset({3}))
    assert both.apart
    alone = divide([5])
    assert alone == Cores(orchestrator=frozenset({5}), others=frozenset({5}))
    assert not alone.apart
    assert available_cores()


def test_copies_of_a_task_share_its_encoders_and_have_small_heads_of_their_own() -> None:
    tasks = draw_tasks(100)
    assert len({task.task for task in tasks}) == 100
    modules = {module.key: module for task in tasks for module in task.modules.values()}
    assert max(module.memory_bytes for module in modules.values()) <= LARGEST_BYTES
    catalogue = {module.key for task in tasks[:27] for module in task.modules.values()}
    copies = [modules[key] for key in modules.keys() - catalogue]
    assert copies
    assert max(module.memory_bytes for module in copies) <= LARGEST_OWN_BYTES
    assert {task.output for task in tasks[27:54]} == {task.output for task in tasks[:27]}
    assert sum(module.memory_bytes for module in modules.values()) < sum(d.memory_bytes for d in draw_devices(10))


def test_the_same_site_is_drawn_each_time() -> None:
    tasks = draw_tasks(14)
    assert draw_devices(30) == draw_devices(30)
    assert draw_devices(10) == draw_devices(30)[:10]
    assert draw_cached(tasks, 30) == draw_cached(tasks, 30)
    assert all(len(known) == 3 for known in draw_cached(tasks, 30))


def deliver(watch: Watch, *devices: str) -> None:
    message = encoder_route("a", devices)
    topic = topics.TASK_ROUTE.at(PREFIX, task="a")
    watch.on_message(Message(topic, encode(message), retain=False, packet_id=1))


def test_a_module_moves_when_its_first_device_in_the_routes_changes() -> None:
    watch = Watch(Sessions("mqtt://127.0.0.1:1"), PREFIX)
    deliver(watch, "gw-a", "gw-b")
    assert watch.serves(["a"])
    deliver(watch)
    assert not watch.serves(["a"]), "no device runs its node"
    deliver(watch, "gw-a")
    assert watch.moves == []
    deliver(watch, "gw-b", "gw-a")
    (move,) = watch.moves
    assert (move.origin, move.to) == ("gw-a", "gw-b")
    assert move.since_s <= move.at_s
    assert watch.naming(["gw-b"]) == ["a"]
