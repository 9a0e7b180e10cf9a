"""An orchestrator whose planner answers at once, and simulated agents that obey it: for its rules over time."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.protocol.messages import AssignedModule, Heartbeat, HeldModule, Route
from broker.protocol.specs import TaskSpec
from broker.transport.port import LinkUp
from orchestrator.events import Action, DeviceStateReceived, Event, HeartbeatReceived, Note, TaskDeployed, Tick
from orchestrator.state import Pace, State, initial
from tests.builders import all_of, offline, online, profile
from tests.planned import decide_and_plan

PACE = Pace(calm_s=2.0, review_s=10.0, round_s=60.0)


@dataclass
class Agent:
    """A device's real state; it obeys when it sends a heartbeat."""

    session: int = 1
    seq: int = 0
    loaded: set[str] = field(default_factory=set)
    loads: int = 0
    up: bool = True
    slow: bool = False  # it never gets a module ready
    refuses: dict[str, str] = field(default_factory=dict)
    compute_s: dict[str, float] = field(default_factory=dict)
    memory_bytes: dict[str, int] = field(default_factory=dict)
    cached: dict[str, float] = field(default_factory=dict)
    suspects: dict[str, float] = field(default_factory=dict)  # seconds since a call to it timed out


class Site:
    """An orchestrator with a clock, and agents that do what agents do."""

    def __init__(self, *tasks: TaskSpec, speed: float = 10e9, **memory_bytes: int) -> None:
        self.state: State = initial(epoch=1, heartbeat_interval_s=1.0, settle_s=1.5, pace=PACE)
        self.now_s = 0.0
        self.agents: dict[str, Agent] = {}
        self.notes: list[Note] = []
        self.feed(LinkUp(1))
        for device, size in memory_bytes.items():
            self.join(device, size, speed)
        for spec in tasks:
            self.feed(TaskDeployed(spec))

    def feed(self, event: Event) -> list[Action]:
        self.state, actions = decide_and_plan(self.state, event, self.now_s)
        self.notes += all_of(actions, Note)
        return actions

    def join(
        self, device: str, memory_bytes: int, speed: float, agent: Agent | None = None, **birth_fields: object
    ) -> list[Action]:
        known = self.agents.get(device)
        self.agents[device] = agent or Agent(session=known.session + 1 if known else 1)
        birth = online(self.agents[device].session, profile(memory_bytes, compute_flops_per_s=speed))
        birth = birth.model_copy(update=birth_fields)
        return [*self.feed(DeviceStateReceived(device, birth)), *self.heartbeat(device)]

    def heartbeat(self, device: str) -> list[Action]:
        """Obey the assignment and report."""
        agent, said = self.agents[device], self.state.assignments.get(device)
        wanted = {told.spec.key: told for told in said.modules} if said else {}
        now = {key for key in wanted if key not in agent.refuses and (key in agent.loaded or not agent.slow)}
        agent.loads += len(now - agent.loaded)
        agent.loaded, agent.seq = now, agent.seq + 1
        held = {key: self._held(agent, told) for key, told in wanted.items()}
        heartbeat = Heartbeat(
            session=agent.session,
            seq=agent.seq,
            epoch=said.epoch if said else 0,
            generation=said.generation if said else 0,
            modules=held,
            cached=agent.cached,
            suspects=agent.suspects,
        )
        return self.feed(HeartbeatReceived(device, heartbeat))

    def _held(self, agent: Agent, told: AssignedModule) -> HeldModule:
        key = told.spec.key
        if key in agent.refuses:
            return HeldModule(module=told.module, state="failed", error=agent.refuses[key])
        if key not in agent.loaded:
            return HeldModule(module=told.module, state="loading", memory_bytes=told.spec.memory_bytes)
        return HeldModule(
            module=told.module,
            state="ready",
            memory_bytes=agent.memory_bytes.get(key, told.spec.memory_bytes),
            compute_s=agent.compute_s.get(key),
        )

    def go_on(self, seconds: float) -> list[Action]:
        """Time passes, and all devices send a heartbeat every second."""
        actions = []
        for _ in range(round(seconds)):
            self.now_s += 1.0
            actions += self.feed(Tick())
            for device, agent in self.agents.items():
                actions += self.heartbeat(device) if agent.up else []
        return actions

    def kill(self, device: str) -> list[Action]:
        self.agents[device].up = False
        return self.feed(DeviceStateReceived(device, offline(self.agents[device].session)))

    def roles(self) -> dict[str, dict[str, list[str]]]:
        """As assigned: role -> module -> devices."""
        found: dict[str, dict[str, list[str]]] = {"active": {}, "standby": {}}
        for device, said in sorted(self.state.assignments.items()):
            for told in said.modules:
                found[told.role].setdefault(told.module, []).append(device)
        return found

    def route(self, name: str) -> Route:
        return self.state.routes[name]

    def able(self, name: str, node: str) -> list[str]:
        return [device.device for device in self.route(name).nodes[f"n-{node}"].devices]

    def told(self, event: str) -> list[Note]:
        return [note for note in self.notes if note.event == event]

    def restart(self) -> None:
        """The orchestrator restarts: it has its orders, and hears the devices again."""
        self.state = initial(
            epoch=self.state.epoch + 1, heartbeat_interval_s=1.0, settle_s=1.5, pace=PACE, orders=self.state.orders
        )
        self.feed(LinkUp(self.state.epoch))
        for device, agent in self.agents.items():
            self.feed(DeviceStateReceived(device, online(agent.session, profile(200, compute_flops_per_s=10e9))))
        for spec in self.state.tasks.values():
            self.feed(TaskDeployed(spec, retained=True))
