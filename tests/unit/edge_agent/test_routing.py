"""Choosing a device per node, against every possible choice."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.cost_model import finish_s
from broker.protocol.messages import MAX_KNOWN_PLANS, Route, RouteDevice
from broker.protocol.specs import MAX_NODES
from edge_agent.requests import routing
from edge_agent.requests.routing import choose_plan
from tests.builders import route, route_node
from tests.oracles import Request

DEVICES = ("gw-a", "gw-b", "gw-c")


def able_device(name: str, compute_s: float = 0.1, latency_s: float = 0.0, bandwidth: float = 1e9) -> RouteDevice:
    return RouteDevice(device=name, compute_s=compute_s, latency_s=latency_s, bandwidth_bits_per_s=bandwidth)


def two_encoders(devices: Mapping[str, tuple[RouteDevice, ...]]) -> Route:
    """Two encoders and a head, over the devices given for each."""
    needs = {"image-encoder": ("image",), "text-encoder": ("text",), "head": ("image-encoder", "text-encoder")}
    nodes = {name: route_node(name, needs[name], devices[name], output_bytes=1000) for name in needs}
    return route("zero-shot", nodes)


def everywhere(**compute_s: float) -> dict[str, tuple[RouteDevice, ...]]:
    return {
        name: tuple(able_device(d, compute_s.get(name.replace("-", "_"), 0.1)) for d in DEVICES)
        for name in ("image-encoder", "text-encoder", "head")
    }


SIZES = {"image": 100_000, "text": 100}


def test_independent_encoders_go_to_different_devices() -> None:
    choice = choose_plan(two_encoders(everywhere(image_encoder=1.0, text_encoder=1.0)), here="gw-a", input_bytes=SIZES)
    assert choice is not None
    plan, expected_s = choice
    assert plan.nodes["image-encoder"].device != plan.nodes["text-encoder"].device
    assert 1.0 < expected_s < 1.3


def test_the_requests_of_a_route_share_a_plan_and_a_changed_route_makes_its_own() -> None:
    known = two_encoders(everywhere())
    first, second = (choose_plan(known, here="gw-a", input_bytes={"image": size, "text": 5}) for size in (10, 20))
    assert first is not None
    assert second is not None
    assert first[0] is second[0]
    changed = choose_plan(known.model_copy(update={"wire": "float16"}), here="gw-a", input_bytes={"image": 10})
    assert changed is not None
    assert (first[0].wire, changed[0].wire) == ("float32", "float16")


def test_each_choice_is_scheduled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled = []

    def counting(*arguments: Any, **more: Any) -> dict[int, float]:
        scheduled.append(arguments)
        return finish_s(*arguments, **more)

    monkeypatch.setattr(routing, "finish_s", counting)
    assert choose_plan(two_encoders(everywhere()), here="gw-a", input_bytes=SIZES)
    assert len(scheduled) == len(DEVICES) ** 3


def test_the_plans_that_a_route_remembers_are_bounded() -> None:
    known = two_encoders(everywhere())
    for number in range(3 * MAX_KNOWN_PLANS):
        made = known.plan_on(dict.fromkeys(known.nodes, f"gw-{number}"))
        assert {planned.device for planned in made.nodes.values()} == {f"gw-{number}"}
        assert len(known._plans) <= MAX_KNOWN_PLANS


def test_a_node_without_a_device_means_no_plan() -> None:
    assert choose_plan(two_encoders(everywhere() | {"head": ()}), here="gw-a", input_bytes=SIZES) is None


def test_an_unavailable_route_means_no_plan() -> None:
    withdrawn = two_encoders(everywhere()).model_copy(update={"unavailable": "no memory"})
    assert choose_plan(withdrawn, here="gw-a", input_bytes=SIZES) is None


def test_a_large_input_stays_where_it_is_when_the_link_is_slow() -> None:
    slow = {name: tuple(able_device(d, 0.1, bandwidth=1e5) for d in DEVICES) for name in everywhere()}
    choice = choose_plan(two_encoders(slow), here="gw-b", input_bytes=SIZES)
    assert choice is not None
    assert choice[0].nodes["image-encoder"].device == "gw-b"


def test_a_finished_node_keeps_its_device() -> None:
    choice = choose_plan(two_encoders(everywhere()), here="gw-a", input_bytes=SIZES, finished={"head": "gw-c"})
    assert choice is not None
    assert choice[0].nodes["head"].device == "gw-c"


def test_an_avoided_device_is_taken_only_when_nobody_else_is_able() -> None:
    only_a = everywhere() | {"head": (able_device("gw-a"),)}
    choice = choose_plan(two_encoders(only_a), here="gw-a", input_bytes=SIZES, avoid=frozenset({"gw-a"}))
    assert choice is not None
    plan = choice[0]
    assert plan.nodes["head"].device == "gw-a"
    assert plan.nodes["image-encoder"].device != "gw-a"


def test_equal_choices_are_made_by_name() -> None:
    choice = choose_plan(two_encoders(everywhere()), here="elsewhere", input_bytes={})
    assert choice is not None
    assert choice[0].nodes["image-encoder"].device == "gw-a"


seconds = st.floats(0.001, 2.0, allow_nan=False)


@given(st.lists(seconds, min_size=3, max_size=3), st.lists(seconds, min_size=3, max_size=3), st.floats(1e4, 1e9))
def test_a_chain_of_one_node_takes_the_device_that_finishes_first(
    compute_s: list[float], latency_s: list[float], bandwidth: float
) -> None:
    candidates = tuple(able_device(name, compute_s[i], latency_s[i], bandwidth) for i, name in enumerate(DEVICES))
    single = route("t", {"node": route_node("m", ("image",), candidates)})
    choice = choose_plan(single, here="gw-a", input_bytes={"image": 1000})
    assert choice is not None

    def finish_s(index: int) -> float:
        sent = 0.0 if index == 0 else latency_s[0] + latency_s[index] + 2 * 8000 / bandwidth
        return sent + compute_s[index] + latency_s[index] + 64 / bandwidth  # and the answer to the broker

    assert choice[1] == pytest.approx(min(finish_s(i) for i in range(3)))


@given(
    st.dictionaries(
        st.sampled_from([f"{n}@{d}" for n, d in product(("image-encoder", "text-encoder", "head"), DEVICES)]), seconds
    )
)
def test_every_plan_is_possible_and_the_same_for_the_same_input(times: dict[str, float]) -> None:
    devices = {
        name: tuple(able_device(d, times[f"{name}@{d}"]) for d in DEVICES if f"{name}@{d}" in times)
        for name in ("image-encoder", "text-encoder", "head")
    }
    built = two_encoders(devices)
    choice = choose_plan(built, here="gw-a", input_bytes=SIZES)
    assert (choice is None) == any(not able for able in devices.values())
    assert choice == choose_plan(built, here="gw-a", input_bytes=SIZES)
    if choice:
        for name, planned in choice[0].nodes.items():
            assert planned.device in {able.device for able in devices[name]}


def test_equal_work_goes_to_the_replica_with_the_shorter_queue() -> None:
    queues = {"gw-a": 0.5, "gw-b": 0.2, "gw-c": 0.4}
    choice = choose_plan(two_encoders(everywhere()), here="elsewhere", input_bytes={}, queue_s=queues)
    assert choice is not None
    assert choice[0].nodes["image-encoder"].device == "gw-b"


def test_a_faster_device_is_taken_in_spite_of_its_queue_when_it_still_finishes_first() -> None:
    devices = everywhere() | {"image-encoder": (able_device("gw-a", 1.0), able_device("gw-b", 0.1))}
    for queue_s, expected in ((0.8, "gw-b"), (0.95, "gw-a")):
        choice = choose_plan(two_encoders(devices), here="elsewhere", input_bytes={}, queue_s={"gw-b": queue_s})
        assert choice is not None
        assert choice[0].nodes["image-encoder"].device == expected


def test_a_finished_node_costs_nothing_again() -> None:
    devices = {name: (able_device("gw-a", 1.0),) for name in everywhere()}
    again = choose_plan(two_encoders(devices), here="gw-a", input_bytes={}, finished={"image-encoder": "gw-a"})
    assert again is not None
    assert 2.0 <= again[1] < 2.1


def test_what_needs_a_finished_node_competes_from_the_start() -> None:
    # On gw-a from 0: b (its need has finished) until 1.0, c until 2.0; d on gw-b has b's output early, c's at 2.0.
    nodes = {
        "a": route_node("a", ("image",), (able_device("gw-a", 1.0),), output_bytes=1),
        "b": route_node("b", ("a",), (able_device("gw-a", 1.0),), output_bytes=1_000_000),
        "c": route_node("c", ("text",), (able_device("gw-a", 1.0),), output_bytes=1),
        "d": route_node("d", ("b", "c"), (able_device("gw-b", 0.5),), output_bytes=1),
    }
    choice = choose_plan(route("t", nodes), here="gw-a", input_bytes=SIZES, finished={"a": "gw-a"})
    assert choice is not None
    assert choice[1] == pytest.approx(2.5, abs=1e-3)


def test_a_finished_node_whose_device_is_gone_is_chosen_again() -> None:
    choice = choose_plan(two_encoders(everywhere()), here="gw-a", input_bytes={}, finished={"image-encoder": "gw-z"})
    assert choice is not None
    assert choice[0].nodes["image-encoder"].device in DEVICES


Graph = dict[str, tuple[str, ...]]
GRAPHS: tuple[Graph, ...] = (
    {"a": ("image",)},
    {"a": ("image",), "b": ("a",), "c": ("b", "text")},
    {"a": ("image",), "b": ("text",), "c": ("a", "b")},
    {"a": ("image",), "b": ("a",), "c": ("text",), "d": ("b", "c", "text")},
    {"a": ("image",), "b": ("text",), "c": ("image", "text"), "d": ("a", "b", "c")},
)
BYTES = {"image": 150_000, "text": 90}
figures = st.tuples(st.floats(0.001, 1.0), st.floats(0.0, 0.2), st.floats(1e5, 1e9))


@st.composite
def requests(draw: st.DrawFn, most: int) -> tuple[Route, dict[str, float], dict[str, str]]:
    """A route over one of the graphs, with at most ``most`` replicas a node; queues; what has finished, and where."""
    graph = draw(st.sampled_from(GRAPHS))
    links = {name: draw(figures)[1:] for name in DEVICES}
    nodes = {}
    for name, needs in graph.items():
        able = draw(st.lists(st.sampled_from(DEVICES), min_size=1, max_size=most, unique=True))
        devices = tuple(able_device(each, draw(figures)[0], *links[each]) for each in able)
        size = draw(st.integers(1, 100_000))
        nodes[name] = route_node(name, needs, devices, output_bytes=size)
    queues = draw(st.dictionaries(st.sampled_from(DEVICES), st.floats(0, 2)))
    finished = {"a": draw(st.sampled_from(nodes["a"].devices)).device} if draw(st.booleans()) else {}
    return route("t", nodes), queues, {} if len(graph) == 1 else finished


def simulated(
    route: Route, at: dict[str, str], queues: dict[str, float], finished: dict[str, str], here: str = "gw-a"
) -> Request:
    """The same request for the event simulation."""
    able = {(name, each.device): each for name, node in route.nodes.items() for each in node.devices}
    return Request(
        needs={name: node.needs for name, node in route.nodes.items()},
        device=at,
        compute_s={name: able[name, where].compute_s for name, where in at.items()},
        input_bytes=BYTES,
        sent_bytes={name: node.output_bytes for name, node in route.nodes.items()},
        links={each.device: (each.latency_s, each.bandwidth_bits_per_s) for each in able.values()},
        source=here,
        queue_s=queues,
        finished=[name for name, where in at.items() if finished.get(name) == where],
    )


def expected_s(route: Route, at: dict[str, str], queues: dict[str, float], finished: dict[str, str]) -> float:
    """Seconds to the answer by the event simulation."""
    request, output = simulated(route, at, queues, finished), route.output or ""
    return request.finishes_s()[output] + request.sent_s(route.nodes[output].output_bytes, at[output], "")


@given(requests(most=2))
def test_among_few_choices_the_best_of_all_is_taken(drawn: tuple[Route, dict[str, float], dict[str, str]]) -> None:
    built, queues, finished = drawn
    choice = choose_plan(built, here="gw-a", input_bytes=BYTES, queue_s=queues, finished=finished)
    assert choice is not None
    able = [[each.device for each in built.nodes[name].devices] for name in built.nodes]
    options = [dict(zip(built.nodes, devices, strict=True)) for devices in product(*able)]
    options = [at for at in options if all(at[name] == where for name, where in finished.items())]
    best = min(expected_s(built, at, queues, finished) for at in options)
    planned = {name: node.device for name, node in choice[0].nodes.items()}
    assert choice[1] == pytest.approx(best, rel=1e-12)
    assert expected_s(built, planned, queues, finished) == pytest.approx(best, rel=1e-12)


@given(requests(most=3))
def test_among_many_choices_one_at_a_time_is_made_and_its_seconds_are_right(
    drawn: tuple[Route, dict[str, float], dict[str, str]],
) -> None:
    built, queues, finished = drawn
    limit, routing.MAX_ENUMERATED = routing.MAX_ENUMERATED, 0
    try:
        choice = choose_plan(built, here="gw-a", input_bytes=BYTES, queue_s=queues, finished=finished)
    finally:
        routing.MAX_ENUMERATED = limit
    assert choice is not None
    planned = {name: node.device for name, node in choice[0].nodes.items()}
    assert choice[1] == pytest.approx(expected_s(built, planned, queues, finished), rel=1e-12)
    first = built.order[0]  # the one that is placed before any other: nothing but itself decides
    if not finished:

        def alone_s(device: str) -> float:
            request = simulated(built, {first: device}, queues, {})
            answer_bytes = built.nodes[first].output_bytes
            answer_s = request.sent_s(answer_bytes, device, "") if len(built.nodes) == 1 else 0.0
            return request.finishes_s()[first] + answer_s

        assert alone_s(planned[first]) == pytest.approx(
            min(alone_s(each.device) for each in built.nodes[first].devices)
        )


def test_the_largest_graph_that_may_be_sent_is_scheduled_once_and_goes_where_the_route_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request of it must not stop its front door: the search would take seconds, node after node."""
    devices = tuple(able_device(name) for name in ("gw-b", "gw-a", "gw-c", "gw-d"))
    chain = {
        f"n{number}": route_node(f"k{number}", (f"n{number - 1}" if number else "image",), devices)
        for number in reversed(range(MAX_NODES))
    }
    built = route("t", chain, output=f"n{MAX_NODES - 1}")
    scheduled: list[object] = []

    def counted(*arguments: Any, **options: Any) -> dict[int, float]:
        scheduled.append(arguments)
        return finish_s(*arguments, **options)

    monkeypatch.setattr(routing, "finish_s", counted)
    choice = choose_plan(built, here="gw-a", input_bytes=BYTES)
    assert choice is not None
    assert {node.device for node in choice[0].nodes.values()} == {"gw-b"}
    assert len(scheduled) == 1
    with pytest.raises(ValidationError, match="at most 256 items"):
        route("t", {**chain, "more": route_node("k", ("image",), devices)}, output="more")
