"""Routes: who may run what, and the front door."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from broker.protocol.messages import HeldModule
from broker.protocol.specs import InputSpec, ModuleSpec
from orchestrator.membership.device import Device
from orchestrator.placement.routes import (
    backup_coordinators,
    build_route,
    front_door_node,
    same_route,
)
from tests import builders
from tests.builders import profile

PROFILE = profile(1000, latency_s=0.002)
FENCE = (3, 7)  # epoch and generation
module = partial(builders.module, flops=2e9)
VISION, TEXT, HEAD = module("vision"), module("text"), module("head")
TASK = builders.read_and_see(VISION, TEXT, HEAD)
WHERE = {VISION.key: ("a",), TEXT.key: ("b",), HEAD.key: ("a",)}


def holder(name: str, *held: ModuleSpec, compute_s: float | None = None) -> Device:
    modules = {spec.key: HeldModule(module="any", state="ready", compute_s=compute_s) for spec in held}
    measured = {spec.key: compute_s for spec in held} if compute_s else {}
    return Device(name, 1, "online", PROFILE, 0.0, confirmed=True, modules=modules, measured=measured)


def test_a_route_is_complete_when_every_module_is_ready_where_it_was_placed() -> None:
    route = build_route(TASK, FENCE, WHERE, {"a": holder("a", VISION, HEAD), "b": holder("b", TEXT)})
    assert route.complete
    assert route.front_door == ("a",)
    assert (route.epoch, route.generation, route.output) == (3, 7, "head")
    assert [device.device for device in route.nodes["read"].devices] == ["b"]
    assert route.nodes["read"].needs == ("text",)


def test_a_route_says_in_which_use_a_node_takes_its_module() -> None:
    seen = TASK.nodes["see"].model_copy(update={"use": "patch-mean"})
    task = TASK.model_copy(update={"nodes": TASK.nodes | {"see": seen}})
    route = build_route(task, FENCE, WHERE, {"a": holder("a", VISION, HEAD), "b": holder("b", TEXT)})
    assert (route.nodes["see"].use, route.nodes["read"].use) == ("patch-mean", None)


def test_while_a_module_loads_its_node_is_pending_and_the_task_is_not_unavailable() -> None:
    loading = replace(holder("b"), modules={TEXT.key: HeldModule(module="any", state="loading")})
    route = build_route(TASK, FENCE, WHERE, {"a": holder("a", VISION, HEAD), "b": loading})
    assert route.nodes["read"].devices == ()
    assert route.unavailable is None
    assert route.front_door == ("a",)
    assert not route.complete


def test_no_route_names_a_device_for_a_module_that_was_not_placed_there() -> None:
    everything = holder("c", VISION, TEXT, HEAD)
    route = build_route(TASK, FENCE, WHERE, {"a": holder("a", VISION, HEAD), "c": everything})
    assert route.nodes["read"].devices == ()


def test_draining_and_suspect_devices_are_routed_to_but_offline_and_dead_ones_are_not() -> None:
    a, b = holder("a", VISION, HEAD), holder("b", TEXT)
    alive = [replace(b, status="draining"), replace(b, health="suspect")]
    gone = [replace(b, status="offline"), replace(b, health="dead"), replace(b, confirmed=False)]
    assert all(build_route(TASK, FENCE, WHERE, {"a": a, "b": other}).complete for other in alive)
    assert not any(build_route(TASK, FENCE, WHERE, {"a": a, "b": other}).complete for other in gone)


def test_routes_carry_measured_seconds_where_there_are_some_and_the_estimate_else() -> None:
    devices = {"a": holder("a", VISION, HEAD, compute_s=0.25), "b": holder("b", TEXT)}
    route = build_route(TASK, FENCE, WHERE, devices)
    assert route.nodes["see"].devices[0].compute_s == 0.25
    assert route.nodes["read"].devices[0].compute_s == 2.0
    assert route.nodes["read"].devices[0].latency_s == 0.002


def test_drifting_seconds_do_not_make_another_route_but_another_device_does() -> None:
    b = holder("b", TEXT)
    slow = build_route(TASK, FENCE, WHERE, {"a": holder("a", VISION, HEAD, compute_s=0.25), "b": b})
    fast = build_route(TASK, FENCE, WHERE, {"a": holder("a", VISION, HEAD, compute_s=0.20), "b": b})
    less = build_route(TASK, FENCE, WHERE, {"a": holder("a", VISION, HEAD, compute_s=0.25)})
    assert same_route(slow, fast)
    assert not same_route(slow, less)


def test_the_front_door_is_the_node_with_the_largest_raw_input() -> None:
    assert front_door_node(TASK) == "see"


def test_where_a_broker_shares_no_messages_one_device_is_the_front_door_and_stays_it() -> None:
    where, devices = {**WHERE, VISION.key: ("a", "b")}, {"a": holder("a", VISION, HEAD), "b": holder("b", VISION, TEXT)}
    assert build_route(TASK, FENCE, where, devices).front_door == ("a", "b")
    alone = build_route(TASK, FENCE, where, devices, one_door=True)
    assert alone.front_door == ("a",)
    assert [device.device for device in alone.nodes["see"].devices] == ["a", "b"], "both still run the node"
    assert build_route(TASK, FENCE, where, devices, ("b",), one_door=True).front_door == ("b",)
    gone = build_route(TASK, FENCE, {**where, VISION.key: ("a",)}, devices, ("b",), one_door=True)
    assert gone.front_door == ("a",)


def test_of_equal_raw_inputs_the_smaller_node_name_is_the_front_door() -> None:
    inputs = {"image": InputSpec(kind="image", bytes=200), "text": InputSpec(kind="text", bytes=200)}
    assert front_door_node(TASK.model_copy(update={"inputs": inputs})) == "read"


def test_a_float16_wire_halves_what_nodes_send_in_the_route() -> None:
    modules = {
        **TASK.modules,
        "text": module("text", output_bytes=5_000_001),
        "head": module("head", output_bytes=3_000_000),
    }
    task = TASK.model_copy(update={"modules": modules, "wire": "float16"})
    route = build_route(task, FENCE, {}, {})
    assert (route.wire, route.nodes["read"].output_bytes) == ("float16", 2_500_001)


def test_an_agent_of_the_first_version_is_no_front_door_of_a_task_with_defaults() -> None:
    text = TASK.inputs["text"].model_copy(update={"default": ("a cat", "a dog")})
    task = TASK.model_copy(update={"inputs": TASK.inputs | {"text": text}, "redundancy": 2})
    where = WHERE | {VISION.key: ("a", "b")}
    old = {"a": holder("a", VISION, HEAD), "b": holder("b", TEXT, VISION)}
    assert build_route(TASK, FENCE, where, old).front_door == ("a", "b")
    assert build_route(task, FENCE, where, old).front_door == ()
    mixed = old | {"b": replace(old["b"], ignores_unknown=True)}
    route = build_route(task, FENCE, where, mixed)
    assert (route.front_door, route.inputs["text"].default) == (("b",), ("a cat", "a dog"))
    assert [each.device for each in route.nodes["see"].devices] == ["a", "b"]
    assert backup_coordinators(task, ("b",), mixed, ()) == ()
    without = old | {"c": replace(holder("c"), ignores_unknown=True)}
    assert build_route(task, FENCE, where, without).front_door == ("c",)
