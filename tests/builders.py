"""Builders of the values that many tests need, each with defaults for the fields that a test doesn't care about.

Owns these defaults. Doesn't know any test: a file that needs other defaults names them once, with ``partial``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from broker.protocol.codec import RawInput, encode_request
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import (
    AssignedModule,
    Assignment,
    DeviceProfile,
    DeviceState,
    ErrorBody,
    Heartbeat,
    HeldModule,
    NodeDone,
    NodeFailed,
    NodeInputs,
    OrchestratorState,
    Plan,
    PlannedNode,
    Route,
    RouteDevice,
    RouteNode,
    TensorMessage,
)
from broker.protocol.specs import DeviceSpec, InputSpec, ModuleSpec, NodeSpec, Source, TaskSpec
from broker.protocol.tensors import Array
from edge_agent import modules
from edge_agent.decide import decide
from edge_agent.device.calibration import Calibration
from edge_agent.device.measurements import Measurements
from edge_agent.events import ModuleReady, Requested
from edge_agent.modules import Module, Output, Pass, Prepared, Value
from edge_agent.runtime.runner import Runner
from edge_agent.runtime.store import MAX_WAIT_S, Load, Store
from edge_agent.state import AgentState
from orchestrator.events import EndPlanning, PlanFound, RequestPlan
from orchestrator.planner.placement import place_most
from orchestrator.planner.plans import PlacementProblem
from orchestrator.planner.problem import Placement
from orchestrator.planner.solve import solve
from orchestrator.planner_process.client import Inbox

PREFIX = "s2m3/v1"
T = TypeVar("T")

# --- modules, devices and tasks for the planner ---


def module(part: str, memory_bytes: int = 1, flops: float = 1e9, output_bytes: int = 100, **fields: Any) -> ModuleSpec:
    """A module of float32 weights that its part identifies; ``fields`` may replace its family, source and all else."""
    values = {
        "family": "any.kind",
        "source": Source(pip="weights", part=part),
        "memory_bytes": memory_bytes,
        "flops": flops,
        "output_bytes": output_bytes,
    }
    return ModuleSpec.model_validate(values | fields)


def part_of(spec: ModuleSpec) -> str:
    """The part that identifies a module of ``module``."""
    assert spec.source
    return spec.source.part


def device(
    name: str,
    memory_bytes: int = 100,
    *,
    speed: float = 10e9,
    bandwidth_bits_per_s: float = 1e8,
    latency_s: float = 0.001,
    compute_s: Mapping[str, float] | None = None,
) -> DeviceSpec:
    """A device for the planner; ``speed`` is in flops per second."""
    return DeviceSpec(
        id=name,
        memory_bytes=memory_bytes,
        compute_flops_per_s=speed,
        bandwidth_bits_per_s=bandwidth_bits_per_s,
        latency_s=latency_s,
        compute_s=dict(compute_s or {}),
    )


def graph(
    name: str,
    nodes: Mapping[str, tuple[ModuleSpec, tuple[str, ...]]],
    *,
    image_bytes: int = 100_000,
    text_bytes: int = 1_000,
    **fields: Any,
) -> TaskSpec:
    """A task of these nodes: each has a module, named by its part, and needs. The output is the last node's."""
    sizes = {"image": image_bytes, "text": text_bytes}
    needed = {need for _, needs in nodes.values() for need in needs}
    values = {
        "task": name,
        "inputs": {kind: InputSpec(kind=kind, bytes=size) for kind, size in sizes.items() if kind in needed},
        "nodes": {node: NodeSpec(module=part_of(spec), needs=needs) for node, (spec, needs) in nodes.items()},
        "output": list(nodes)[-1],
        "modules": {part_of(spec): spec for spec, _ in nodes.values()},
    }
    return TaskSpec.model_validate(values | fields)


def chain(name: str, *modules: ModuleSpec, **fields: Any) -> TaskSpec:
    """A task in which each module takes the output of the one before it, and the first takes an image."""
    nodes = [f"n-{part_of(spec)}" for spec in modules]
    needs = ["image", *nodes]
    return graph(name, {node: (modules[i], (needs[i],)) for i, node in enumerate(nodes)}, **fields)


def read_and_see(vision: ModuleSpec, text: ModuleSpec, head: ModuleSpec) -> TaskSpec:
    """A task with an encoder of its image and one of its text; its nodes stand in another order than they run."""
    return TaskSpec(
        task="zero-shot",
        inputs={"image": InputSpec(kind="image", bytes=150_000), "text": InputSpec(kind="text", bytes=200)},
        nodes={
            "head": NodeSpec(module="head", needs=("read", "see")),
            "read": NodeSpec(module="text", needs=("text",)),
            "see": NodeSpec(module="vision", needs=("image",)),
        },
        output="head",
        modules={"vision": vision, "text": text, "head": head},
    )


def joined(name: str, encoders: Sequence[ModuleSpec], head: ModuleSpec, **fields: Any) -> TaskSpec:
    """A task in which encoders take an image side by side, and the head takes all their outputs."""
    nodes = {f"n-{part_of(spec)}": (spec, ("image",)) for spec in encoders}
    return graph(name, nodes | {"last": (head, tuple(nodes) or ("image",))}, **fields)


# --- routes: which devices can run a task's nodes ---


def placement_problem(devices: Sequence[DeviceSpec], tasks: Sequence[TaskSpec]) -> PlacementProblem:
    """A problem for the planner: nothing is placed, in memory or barred yet."""
    return PlacementProblem(
        devices=tuple(devices),
        tasks=tuple(tasks),
        at_hand={},
        barred={},
        keep={},
        absent={},
        where={},
        explained=frozenset(),
        credit={},
        waived=None,
    )


class InlinePlanner:
    """A planner in the calling thread: the plan is in the inbox when ``request`` returns."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def request(self, action: RequestPlan) -> None:
        """Solve the problem."""
        self._inbox(PlanFound(action.ticket, solve(action.problem)))

    def end(self, action: EndPlanning) -> None:
        """Do nothing: no problem is under way."""

    def close(self) -> None:
        """Do nothing."""


def able(
    *devices: str, compute_s: float = 0.1, latency_s: float = 0.0, bandwidth_bits_per_s: float = 1e12
) -> tuple[RouteDevice, ...]:
    """Devices that can run a node, all at the same cost."""
    link = {"latency_s": latency_s, "bandwidth_bits_per_s": bandwidth_bits_per_s}
    return tuple(RouteDevice(device=name, compute_s=compute_s, **link) for name in devices)


def route_node(
    key: str, needs: tuple[str, ...], devices: tuple[RouteDevice, ...], *, output_bytes: int = 8
) -> RouteNode:
    """A node whose module has this key, and the devices that can run it."""
    return RouteNode(module="m/x", key=key, needs=needs, output_bytes=output_bytes, devices=devices)


def route(task: str, nodes: Mapping[str, RouteNode], /, **fields: Any) -> Route:
    """A route whose output is its last node and whose front door is gw-a; ``fields`` may replace all of them."""
    kinds = {"image": InputSpec(kind="image", bytes=1000), "text": InputSpec(kind="text", bytes=10)}
    needed = {need for node in nodes.values() for need in node.needs}
    values = {
        "task": task,
        "epoch": 1,
        "generation": 1,
        "group": 1,
        "inputs": {name: spec for name, spec in kinds.items() if name in needed},
        "nodes": dict(nodes),
        "output": list(nodes)[-1],
        "front_door": ("gw-a",),
    }
    return Route.model_validate(values | fields)


ENCODER = module("encoder", memory_bytes=1000, flops=1e6, output_bytes=8)


def encoder_route(
    task: str, devices: tuple[str, ...] = ("gw-a",), *, key: str = ENCODER.key, compute_s: float = 0.1, **fields: Any
) -> Route:
    """A route of one node, ``encoder``, which takes a text and can run on any of these devices."""
    node = route_node(key, ("text",), able(*devices, compute_s=compute_s))
    return route(task, {"encoder": node}, **fields)


# --- reports of a device ---


def profile(memory_bytes: int = 100, **fields: Any) -> DeviceProfile:
    """The profile that a device publishes with its birth."""
    link = {"bandwidth_bits_per_s": 1e8, "latency_s": 0.001}
    return DeviceProfile.model_validate({"memory_bytes": memory_bytes, "compute_flops_per_s": 1e9} | link | fields)


def online(session: int = 1, known: DeviceProfile | None = None) -> DeviceState:
    """The birth of a device, with its profile."""
    return DeviceState(status="online", session=session, profile=known or profile())


def offline(session: int = 1) -> DeviceState:
    """The will of a device."""
    return DeviceState(status="offline", session=session)


def heartbeat(seq: int = 1, session: int = 1, **fields: Any) -> Heartbeat:
    """A heartbeat of a device that follows the first assignment of the first epoch."""
    return Heartbeat.model_validate({"session": session, "seq": seq, "epoch": 1, "generation": 1} | fields)


def obedient(
    said: Assignment | None, seq: int, session: int = 1, *, compute_s: float | None = None, **fields: Any
) -> Heartbeat:
    """The heartbeat of a device that follows this assignment; all of its modules are ready."""
    assigned = said.modules if said else ()
    held = {m.spec.key: HeldModule(module=m.module, state="ready", compute_s=compute_s) for m in assigned}
    epoch, generation = (said.epoch, said.generation) if said else (0, 0)
    return heartbeat(seq, session, epoch=epoch, generation=generation, **{"modules": held} | fields)


def placed(devices: Sequence[DeviceSpec], wanted: Sequence[TaskSpec]) -> tuple[Placement, list[TaskSpec]]:
    """A placement of those tasks that fit, and these tasks."""
    placement, refused = place_most(devices, wanted)
    return placement, [task for task in wanted if task.task not in refused]


# --- events, states and messages of an agent ---


def assignment(*specs: ModuleSpec, epoch: int = 1, generation: int = 1) -> Assignment:
    """An assignment of these modules, each under the name m/PART."""
    modules = tuple(AssignedModule(module=f"m/{part_of(spec)}", spec=spec) for spec in specs)
    return Assignment(epoch=epoch, generation=generation, modules=modules)


def leader(epoch: int, session: int = 1, *, online: bool = True) -> OrchestratorState:
    """The message of an orchestrator that leads, or goes offline."""
    return OrchestratorState(epoch=epoch, online=online, session=session)


def agent(device: str, *holds: ModuleSpec, routes: Iterable[Route] = (), compute_s: float | None = None) -> AgentState:
    """The state of an agent that holds these modules and knows these routes since 0 s."""
    state = AgentState(device, PREFIX)
    if holds:
        decide(state, assignment(*holds), 0.0)
    for spec in holds:
        decide(state, ModuleReady(spec.key, compute_s=compute_s), 0.0)
    for known in routes:
        decide(state, known, 0.0)
    return state


def requested(
    task: str,
    number: int = 1,
    *,
    inputs: Mapping[str, RawInput] | None = None,
    client: str = "camera",
    expiry_s: int | None = 10,
) -> Requested:
    """The event that a client's request arrived at a front door; without ``inputs`` the request has a text."""
    payload, content_type = encode_request(dict(inputs or {"text": RawInput(b"a cat", "text/plain")}))
    reply_to = f"{PREFIX}/clients/{client}/results/{number}"
    return Requested(task, payload, content_type, reply_to, str(number).encode(), expiry_s)


def node_inputs(
    node: str = "head", needs: tuple[str, ...] = ("image",), device: str = "gw-b", **fields: Any
) -> NodeInputs:
    """Inputs that gw-a sends to a device, which runs the only node of a plan."""
    values = {
        "request": "r-1",
        "task": "t",
        "node": node,
        "epoch": 1,
        "generation": 1,
        "attempt": 0,
        "coordinator": "gw-a",
        "deadline_s": 5.0,
        "reply_to": f"{PREFIX}/clients/c/results/1",
        "plan": Plan(nodes={node: PlannedNode(key="k", needs=needs, device=device)}, output=node),
    }
    return NodeInputs.model_validate(values | fields)


def of_node(message: TensorMessage) -> dict[str, Any]:
    """The fields of a message that identify the attempt: request, task, node, epoch, generation and attempt number."""
    return {name: getattr(message, name) for name in ("request", "task", "node", "epoch", "generation", "attempt")}


def done(message: TensorMessage, **fields: Any) -> NodeDone:
    """The message of a device that has run the node of these inputs."""
    return NodeDone(**of_node(message) | fields)


def failed(
    message: TensorMessage,
    device: str = "gw-b",
    code: ErrorCode = ErrorCode.MODULE_FAILED,
    *,
    retry: bool = True,
    retry_after_s: float | None = None,
    **fields: Any,
) -> NodeFailed:
    """The message of a device that can't run the node of these inputs."""
    error = ErrorBody(code=code, message="it failed", retry_after_s=retry_after_s)
    return NodeFailed(**of_node(message) | {"device": device, "retry": retry, "error": error} | fields)


def all_of(actions: Iterable[object], kind: type[T]) -> list[T]:
    """The actions of one kind, in order."""
    return [action for action in actions if isinstance(action, kind)]


def only(actions: Iterable[object], kind: type[T]) -> T:
    """The one action of a kind."""
    found = all_of(actions, kind)
    assert len(found) == 1, actions
    return found[0]


# --- modules as an agent runs them ---


@dataclass(frozen=True)
class _Given(Prepared):
    values: tuple[Value, ...] = ()


class _Computing:
    def __init__(self, compute: Callable[..., Output], sample: tuple[Value, ...] | None) -> None:
        self._compute = compute
        self._sample = sample

    def prepare(self, values: Sequence[Value]) -> Prepared:
        return _Given({}, values=tuple(values))

    def answer(self, _: Mapping[str, Array], prepared: Prepared) -> Output:
        assert isinstance(prepared, _Given)
        return self._compute(*prepared.values)

    def sample(self) -> tuple[Value, ...] | None:
        return self._sample


def computing(compute: Callable[..., Output], sample: tuple[Value, ...] | None = None) -> Module:
    """A module without weights that gives what a function makes of its values; with a sample it can be measured."""
    return Module(None, {None: Pass(_Computing(compute, sample), lambda _: {})})


def runs(module: Module) -> Callable[..., Output]:
    """A loaded module as a function of its values, in a ``use``."""
    return lambda *values, use=None: Runner().run(module, values, use)


def uncalibrated_store(budget_bytes: int, load: Load = modules.load, *, wait_s: float = MAX_WAIT_S) -> Store:
    """A store that measures no memory: a module has the bytes of its spec."""
    calibration = Calibration(Measurements(), resident_bytes=lambda: None, free_bytes=lambda: None)
    return Store(budget_bytes, load, calibration=calibration, wait_s=wait_s)
