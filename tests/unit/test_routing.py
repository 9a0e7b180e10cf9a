"""Choosing a device per node, against every possible choice."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.messages import Route, RouteDevice, RouteNode
from broker.specs import InputSpec
from edge_agent.routing import choose_plan

DEVICES = ("gw-a", "gw-b", "gw-c")


def device(name: str, compute_s: float = 0.1, latency_s: float = 0.0, bandwidth: float = 1e9) -> RouteDevice:
    return RouteDevice(device=name, compute_s=compute_s, latency_s=latency_s, bandwidth_bits_per_s=bandwidth)


def route(devices: dict[str, tuple[RouteDevice, ...]]) -> Route:
    """Two encoders and a head, over the devices given for each."""
    needs = {"image-encoder": ("image",), "text-encoder": ("text",), "head": ("image-encoder", "text-encoder")}
    nodes = {
        name: RouteNode(module=name, key=name, needs=needs[name], output_bytes=1000, devices=devices[name])
        for name in needs
    }
    inputs = {"image": InputSpec(kind="image", bytes=100_000), "text": InputSpec(kind="text", bytes=100)}
    return Route(
        task="zero-shot",
        epoch=1,
        generation=1,
        group=1,
        inputs=inputs,
        nodes=nodes,
        output="head",
        front_door=("gw-a",),
    )


def everywhere(**compute_s: float) -> dict[str, tuple[RouteDevice, ...]]:
    return {
        name: tuple(device(d, compute_s.get(name.replace("-", "_"), 0.1)) for d in DEVICES)
        for name in ("image-encoder", "text-encoder", "head")
    }


SIZES = {"image": 100_000, "text": 100}


def test_independent_encoders_go_to_different_devices() -> None:
    choice = choose_plan(route(everywhere(image_encoder=1.0, text_encoder=1.0)), here="gw-a", input_bytes=SIZES)
    assert choice is not None
    plan, expected_s = choice
    assert plan.nodes["image-encoder"].device != plan.nodes["text-encoder"].device
    assert 1.0 < expected_s < 1.3


def test_a_node_without_a_device_means_no_plan() -> None:
    assert choose_plan(route(everywhere() | {"head": ()}), here="gw-a", input_bytes=SIZES) is None


def test_an_unavailable_route_means_no_plan() -> None:
    withdrawn = route(everywhere()).model_copy(update={"unavailable": "no memory"})
    assert choose_plan(withdrawn, here="gw-a", input_bytes=SIZES) is None


def test_a_large_input_stays_where_it_is_when_the_link_is_slow() -> None:
    slow = {name: tuple(device(d, 0.1, bandwidth=1e5) for d in DEVICES) for name in everywhere()}
    choice = choose_plan(route(slow), here="gw-b", input_bytes=SIZES)
    assert choice is not None
    assert choice[0].nodes["image-encoder"].device == "gw-b"


def test_a_finished_node_keeps_its_device() -> None:
    choice = choose_plan(route(everywhere()), here="gw-a", input_bytes=SIZES, keep={"head": "gw-c"})
    assert choice is not None
    assert choice[0].nodes["head"].device == "gw-c"


def test_an_avoided_device_is_taken_only_when_nobody_else_is_able() -> None:
    only_a = everywhere() | {"head": (device("gw-a"),)}
    choice = choose_plan(route(only_a), here="gw-a", input_bytes=SIZES, avoid=frozenset({"gw-a"}))
    assert choice is not None
    plan = choice[0]
    assert plan.nodes["head"].device == "gw-a"
    assert plan.nodes["image-encoder"].device != "gw-a"


def test_equal_choices_are_made_by_name() -> None:
    choice = choose_plan(route(everywhere()), here="elsewhere", input_bytes={})
    assert choice is not None
    assert choice[0].nodes["image-encoder"].device == "gw-a"


seconds = st.floats(0.001, 2.0, allow_nan=False)


@given(st.lists(seconds, min_size=3, max_size=3), st.lists(seconds, min_size=3, max_size=3), st.floats(1e4, 1e9))
def test_a_chain_of_one_node_takes_the_device_that_finishes_first(
    compute_s: list[float], latency_s: list[float], bandwidth: float
) -> None:
    candidates = tuple(device(name, compute_s[i], latency_s[i], bandwidth) for i, name in enumerate(DEVICES))
    node = RouteNode(module="m", key="m", needs=("image",), output_bytes=8, devices=candidates)
    single = Route(
        task="t",
        epoch=1,
        generation=1,
        group=1,
        inputs={"image": InputSpec(kind="image", bytes=1000)},
        nodes={"node": node},
        output="node",
        front_door=("gw-a",),
    )
    choice = choose_plan(single, here="gw-a", input_bytes={"image": 1000})
    assert choice is not None

    def finish_s(index: int) -> float:
        sent = 0.0 if index == 0 else latency_s[0] + latency_s[index] + 8000 / bandwidth
        return sent + compute_s[index]

    assert choice[1] == pytest.approx(min(finish_s(i) for i in range(3)))


@given(
    st.dictionaries(
        st.sampled_from([f"{n}@{d}" for n, d in product(("image-encoder", "text-encoder", "head"), DEVICES)]), seconds
    )
)
def test_every_plan_is_possible_and_the_same_for_the_same_input(times: dict[str, float]) -> None:
    devices = {
        name: tuple(device(d, times[f"{name}@{d}"]) for d in DEVICES if f"{name}@{d}" in times)
        for name in ("image-encoder", "text-encoder", "head")
    }
    built = route(devices)
    choice = choose_plan(built, here="gw-a", input_bytes=SIZES)
    assert (choice is None) == any(not able for able in devices.values())
    assert choice == choose_plan(built, here="gw-a", input_bytes=SIZES)
    if choice:
        for name, planned in choice[0].nodes.items():
            assert planned.device in {able.device for able in devices[name]}
