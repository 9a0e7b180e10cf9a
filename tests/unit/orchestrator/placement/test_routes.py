"""Routes: who may run what, the front door, and what can't pass the broker."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from broker.protocol.messages import HeldModule
from broker.protocol.specs import InputSpec, ModuleSpec, NodeSpec, TaskSpec
from orchestrator.membership.device import Device
from orchestrator.placement.routes import (
    HEADER_ROOM_BYTES,
    build_route,
    front_door_node,
    same_route,
    why_too_large,
)
from tests import builders
from tests.builders import profile

PROFILE = profile(1000, latency_s=0.002)
FENCE = (3, 7)  # epoch and generation
module = partial(builders.module, flops=2e9)
VISION, TEXT, HEAD = module("vision"), module("text"), module("head")
TASK = TaskSpec(
    task="zero-shot",
    inputs={"image": InputSpec(kind="image", bytes=150_000), "text": InputSpec(kind="text", bytes=200)},
    nodes={
        "head": NodeSpec(module="head", needs=("read", "see")),
        "read": NodeSpec(module="text", needs=("text",)),
        "see": NodeSpec(module="vision", needs=("image",)),
    },
    output="head",
    modules={"vision": VISION, "text": TEXT, "head": HEAD},
)
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


def test_of_equal_raw_inputs_the_smaller_node_name_is_the_front_door() -> None:
    inputs = {"image": InputSpec(kind="image", bytes=200), "text": InputSpec(kind="text", bytes=200)}
    assert front_door_node(TASK.model_copy(update={"inputs": inputs})) == "read"


def test_a_task_whose_inputs_or_outputs_pass_the_broker_exactly_is_not_refused() -> None:
    largest = TASK.inputs["image"].bytes + TASK.inputs["text"].bytes + HEADER_ROOM_BYTES
    assert why_too_large(TASK, largest) is None
    why = why_too_large(TASK, largest - 1)
    assert why is not None
    assert "the inputs together (150200 bytes" in why


def test_an_output_that_cannot_pass_the_broker_is_named_with_its_size() -> None:
    modules = {**TASK.modules, "text": module("text", output_bytes=5_000_000)}
    why = why_too_large(TASK.model_copy(update={"modules": modules}), 2_000_000)
    assert why is not None
    assert "the output of read (5000000 bytes" in why
    assert "2000000" in why


def test_a_float16_wire_halves_what_nodes_send_in_the_route_and_against_the_brokers_limit() -> None:
    modules = {
        **TASK.modules,
        "text": module("text", output_bytes=5_000_001),
        "head": module("head", output_bytes=3_000_000),
    }
    task = TASK.model_copy(update={"modules": modules, "wire": "float16"})
    route = build_route(task, FENCE, {}, {})
    assert (route.wire, route.nodes["read"].output_bytes) == ("float16", 2_500_001)
    assert "the output of head (3000000 bytes" in str(why_too_large(task, 2_900_000)), "the answer isn't rounded"
    assert why_too_large(task, 3_000_000 + HEADER_ROOM_BYTES) is None
