"""No message costs its readers more than n log n steps for n nodes, needs, devices, tasks or modules in it.

Counted, not timed: the same work of n and of 4n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest

from broker.cost_model import OUTSIDE, Graph, Link, finish_s
from broker.protocol.codec import RawInput, decode, decode_tensors, encode, encode_tensors
from broker.protocol.messages import Heartbeat, HeldModule, Plan, PlannedNode, Route
from broker.protocol.specs import InputSpec, NodeSpec, TaskSpec, in_order
from broker.transport.port import LinkUp
from edge_agent.decide import decide as decide_agent
from edge_agent.events import Received
from edge_agent.requests import hung_devices
from edge_agent.requests.routing import choose_plan
from edge_agent.state import AgentState, Coordinated
from orchestrator.decide import decide as decide_orchestrator
from orchestrator.events import DeviceStateReceived, HeartbeatReceived, TaskDeployed
from orchestrator.leadership.orders import NO_ORDERS, record
from orchestrator.placement.planner_input import facts_of
from orchestrator.state import State, initial
from tests.builders import ENCODER, PREFIX, able, agent, heartbeat, module, node_inputs, online, route, route_node
from tests.steps import assert_about_linear

Needs = dict[str, tuple[str, ...]]


def chain(size: int) -> Needs:
    """Each node needs the one before; the last one comes first."""
    return {f"n{number}": (f"n{number - 1}" if number else "image",) for number in reversed(range(size))}


def star(size: int) -> Needs:
    """All nodes need the input, and the last one all others."""
    return {f"n{number}": ("image",) for number in range(size)} | {"last": tuple(f"n{n}" for n in range(size))}


def fan(size: int) -> Needs:
    """All nodes need the first one."""
    first: Needs = {"n": ("image",)}
    return first | {f"n{number}": ("n",) for number in range(size)}


def twice(size: int) -> Needs:
    """Few nodes, which need the same input again and again."""
    return {"n0": ("image",) * size, "n1": ("n0",) * size, "n2": ("n0", "n1", "image") * (size // 3)}


GRAPHS = pytest.mark.parametrize("graph", [chain, star, fan, twice])
SIZE = 48


def last(needs: Needs) -> str:
    return in_order(needs)[-1]


def route_of(needs: Needs, devices: Sequence[str] = ("gw-a",), task: str = "t") -> Route:
    nodes = {name: route_node(ENCODER.key, taken, able(*devices)) for name, taken in needs.items()}
    return route(task, nodes, output=last(needs))


def plan_of(needs: Needs) -> Plan:
    nodes = {name: PlannedNode(key=ENCODER.key, needs=taken, device="gw-a") for name, taken in needs.items()}
    return Plan(nodes=nodes, output=last(needs))


def task_of(needs: Needs, name: str = "t", memory_bytes: int = 1) -> TaskSpec:
    return TaskSpec(
        task=name,
        inputs={"image": InputSpec(kind="image", bytes=1)},
        nodes={node: NodeSpec(module="m", needs=taken) for node, taken in needs.items()},
        output=last(needs),
        modules={"m": module("m", memory_bytes)},
    )


@GRAPHS
def test_graphs_are_ordered_and_decoded(graph: Callable[[int], Needs]) -> None:
    assert_about_linear(lambda size: partial(in_order, graph(size)), SIZE)
    assert_about_linear(lambda size: partial(decode, Route, encode(route_of(graph(size)))), SIZE)
    assert_about_linear(lambda size: partial(decode, TaskSpec, encode(task_of(graph(size)))), SIZE)

    def message(size: int) -> Callable[[], object]:
        needs = graph(size)
        return partial(decode_tensors, encode_tensors(node_inputs(last(needs), plan=plan_of(needs)), {}))

    assert_about_linear(message, SIZE)


@GRAPHS
@pytest.mark.parametrize("devices", [1, 3])
def test_graphs_are_scheduled(graph: Callable[[int], Needs], devices: int) -> None:
    def schedule(size: int) -> Callable[[], object]:
        needs = graph(size)
        made = Graph(
            needs, output=last(needs), input_bytes={"image": 9}, sent_bytes=dict.fromkeys(needs, 9), answer_bytes=1
        )
        at = {node: Link(f"d{node % devices}", 0.001, 1e6) for node in range(len(made.names))}
        compute_s = {node: 0.1 + node % 7 for node in at}
        return lambda: finish_s(made, at, compute_s, OUTSIDE)

    assert_about_linear(schedule, SIZE)


@GRAPHS
def test_a_request_is_planned_and_its_messages_are_read(graph: Callable[[int], Needs]) -> None:
    def planned(size: int, devices: Sequence[str]) -> Callable[[], object]:
        return partial(choose_plan, route_of(graph(size), devices), here="gw-a", input_bytes={})

    assert_about_linear(partial(planned, devices=("gw-a",)), SIZE)
    assert_about_linear(partial(planned, devices=("gw-a", "gw-b", "gw-c")), SIZE)

    def inputs(size: int) -> Callable[[], object]:
        needs = graph(size)
        message = node_inputs("n0" if "n0" in needs else "n", plan=plan_of(needs), device="gw-a")
        event = Received("gw-a", message, {"image": RawInput(b"x")})
        return partial(decide_agent, agent("gw-a", ENCODER), event, 0.0)

    assert_about_linear(inputs, SIZE)


def test_many_devices_of_a_node_are_compared_within_a_budget() -> None:
    def work(size: int) -> Callable[[], object]:
        devices = [f"d{number}" for number in range(size)]
        return partial(choose_plan, route_of(chain(6), devices), here="gw-a", input_bytes={})

    assert_about_linear(work, 100)


def test_a_request_whose_devices_are_late_is_planned_again() -> None:
    def work(size: int) -> Callable[[], object]:
        known = route_of(chain(size), ("gw-a", "gw-b", "gw-c"))
        request = Coordinated("r", "t", {}, "", b"", 9.0)
        request.late = {(name, "gw-a") for name in known.nodes}
        request.ever_assigned = {(name, device) for name in known.nodes for device in ("gw-a", "gw-b")}
        return partial(hung_devices.allowed, request, known)

    assert_about_linear(work, SIZE)


def test_one_large_route_drops_many_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A route that names this device pushes out those of strangers, the largest first."""

    def work(size: int) -> Callable[[], object]:
        state = AgentState("gw-a", PREFIX)
        monkeypatch.setattr("edge_agent.kept_routes.MAX_ROUTE_BYTES", 2**30)
        small = [route_of(chain(1), ("gw-b",), task=f"t-{number}") for number in range(size)]
        for each in (one.model_copy(update={"front_door": ("gw-b",)}) for one in small):
            decide_agent(state, each, 0.0)
        monkeypatch.setattr("edge_agent.kept_routes.MAX_ROUTE_BYTES", len(encode(route_of(chain(200)))) + 1000)
        return lambda: decide_agent(state, route_of(chain(200), task="own"), 0.0)

    assert_about_linear(work, 300)


# --- the orchestrator ---


def leading() -> State:
    state, _ = decide_orchestrator(initial(epoch=1, settle_s=0.0), LinkUp(1), 0.0)
    return state


def with_devices(state: State, size: int) -> State:
    for number in range(size):
        name = f"d{number}"
        state, _ = decide_orchestrator(state, DeviceStateReceived(name, online()), 0.1)
        state, _ = decide_orchestrator(state, HeartbeatReceived(name, heartbeat()), 0.1)
    return state


def test_tasks_that_contradict_each_other_are_compared_with_the_first() -> None:
    def work(size: int) -> Callable[[], object]:
        state = leading()
        sizes = [1] * (size - 1) + [2]  # the last one makes the module a disputed one
        tasks = {f"t{number}": task_of(chain(1), f"t{number}", size_bytes) for number, size_bytes in enumerate(sizes)}
        return partial(facts_of, State(1, 0.0, state.cluster, link=state.link, tasks=tasks))

    assert_about_linear(work, 40)


def test_a_heartbeat_of_many_suspects() -> None:
    def work(size: int) -> Callable[[], object]:
        state = with_devices(leading(), size)
        message = heartbeat(2, suspects={f"d{number}": 0.0 for number in range(1, size)})
        return lambda: decide_orchestrator(state, HeartbeatReceived("d0", message), 1.0)

    assert_about_linear(work, 40)


def test_a_heartbeat_of_many_failed_modules() -> None:
    def work(size: int) -> Callable[[], object]:
        state = with_devices(leading(), 1)
        held = {f"k{number}": HeldModule(module="m", state="failed", error="why") for number in range(size)}
        message = Heartbeat.model_validate(heartbeat(2).model_dump() | {"modules": held})
        return lambda: decide_orchestrator(state, HeartbeatReceived("d0", message), 1.0)

    assert_about_linear(work, 200)


def test_a_spec_among_many_tasks() -> None:
    def work(size: int) -> Callable[[], object]:
        state = leading()
        for number in range(size):
            state, _ = decide_orchestrator(state, TaskDeployed(task_of(chain(1), f"t{number}")), 1.0)
        return lambda: decide_orchestrator(state, TaskDeployed(task_of(chain(1), "new")), 2.0)

    assert_about_linear(work, 30)


def test_the_orders_of_many_tasks_are_recorded() -> None:
    def work(size: int) -> Callable[[], object]:
        tasks = {f"t{number}": task_of(chain(1), f"t{number}") for number in range(size)}
        return partial(record, NO_ORDERS, tasks, (), epoch=1, session=None)

    assert_about_linear(work, 50)
