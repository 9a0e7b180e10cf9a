"""A request that kills whatever computes it, on a simulated site: in every order of messages, two devices die at most.

The rules are the real ones, of the orchestrator and of the agents. Between any two of them messages keep their order,
and wait as long as chance says. The sensor sends its request again until it hears the end of it.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from broker.protocol.codec import RawInput, decode, encode, inputs_digest
from broker.protocol.errors import ErrorCode
from broker.protocol.messages import ErrorBody, Heartbeat, HeldModule, NodeInputs, Permit
from broker.transport.port import LinkUp
from edge_agent import events as agent_events
from edge_agent.decide import decide as decide_agent
from edge_agent.heart import snapshot_of
from edge_agent.modules import Output
from edge_agent.requests.execute import failure
from edge_agent.state import AgentState
from orchestrator import events
from orchestrator.state import Pace, State, initial
from tests.builders import PREFIX, chain, module, offline, online, requested
from tests.planned import decide_and_plan

DEVICES = ("gw-a", "gw-b", "gw-c", "gw-d", "gw-e")
SPEC = module("x", memory_bytes=10)
HEAD = module("y", memory_bytes=10)
DEADLY, HONEST = RawInput(b"deadly", "image/png"), RawInput(b"honest", "image/png")
MOST_STEPS, LONGEST_S = 5_000, 5.0  # between two looks of the sensor


class Simulation:
    """A site with a leader, five agents of which each may hold all, and the broker between them."""

    def __init__(self, seed: int, *, redundancy: int, rebirths: bool) -> None:
        self.chance, self.now_s = random.Random(seed), 0.0  # noqa: S311 - an order, not a secret
        self.rebirths = rebirths
        self.leader: State = initial(epoch=1, settle_s=0.0, pace=Pace(calm_s=0.0))
        self.agents: dict[str, AgentState] = {}
        self.sessions, self.seq = dict.fromkeys(DEVICES, 0), 0
        self.deaths: list[tuple[str, str | None]] = []
        self.answers: dict[str, list[ErrorBody | None]] = defaultdict(list)
        self.channels: dict[tuple[str, ...], deque[Callable[[], None]]] = defaultdict(deque)
        self.task = chain("t", SPEC, HEAD, redundancy=redundancy)
        self.lead(LinkUp(1))
        for device in DEVICES:
            self.begin(device)
        self.lead(events.TaskDeployed(self.task))
        self.quiet()

    # --- time and order ---

    def later(self, *channel: str, do: Callable[[], None]) -> None:
        self.channels[channel].append(do)

    def step(self) -> bool:
        """Deliver the first message of some channel, or let time pass; False when nothing is left to do soon."""
        waiting = [channel for channel, messages in self.channels.items() if messages]
        if waiting:
            self.channels[self.chance.choice(waiting)].popleft()()
            return True
        due = [due_s for state in self.agents.values() if (due_s := state.next_deadline_s()) is not None]
        if not due or min(due) > self.now_s + 2.0:
            return False
        self.now_s = max(self.now_s, min(due))
        for device, state in list(self.agents.items()):
            if (state.next_deadline_s() or 1e9) <= self.now_s:
                self.perform(device, decide_agent(state, agent_events.Tick(), self.now_s))
        return True

    def quiet(self) -> None:
        until_s = self.now_s + LONGEST_S
        for _ in range(MOST_STEPS):
            if self.now_s > until_s or not self.step():
                break
            for device in self.agents:
                self.heartbeat_now_and_then(device)
        self.now_s += 1.0
        for device in list(self.agents):
            self.heartbeat(device)
        self.lead(events.Tick())
        while any(self.channels.values()):
            self.step()

    def heartbeat_now_and_then(self, device: str) -> None:
        if self.chance.random() < 0.02:
            self.heartbeat(device)

    # --- the leader ---

    def lead(self, event: events.Event) -> None:
        self.leader, actions = decide_and_plan(self.leader, event, self.now_s)
        for action in actions:
            match action:
                case events.PublishRoute(route):
                    self.tell(DEVICES, route)
                case events.PublishQuarantine(message):
                    self.tell(DEVICES, message)
                case events.PublishAssignment(device, assignment):
                    self.tell((device,), assignment)
                case events.PublishPermit(device, epoch, request, granted):
                    self.tell((device,), Permit(epoch=epoch, request=request, granted=granted))

    def tell(self, devices: tuple[str, ...], message: Any) -> None:
        for device in devices:
            self.later("control", device, do=partial(self.act, device, message))

    # --- the agents ---

    def begin(self, device: str, *, died_with: tuple[str, ...] | None = None) -> None:
        self.sessions[device] += 1
        self.agents[device] = AgentState(device, PREFIX)
        birth = online(self.sessions[device]).model_copy(update={"died_with": died_with})
        self.later(device, "control", do=lambda: self.lead(events.DeviceStateReceived(device, birth)))
        self.heartbeat(device)
        for message in (*self.leader.routes.values(), *filter(None, [self.leader.assignments.get(device)])):
            self.tell((device,), message)

    def act(self, device: str, event: Any) -> None:
        if device in self.agents:
            self.perform(device, decide_agent(self.agents[device], event, self.now_s))

    def perform(self, device: str, actions: list[Any]) -> None:
        for action in actions:
            if device not in self.agents:
                return
            match action:
                case agent_events.Load(assigned):
                    self.later(
                        device, "own", do=partial(self.act, device, agent_events.ModuleReady(assigned.spec.key, 0.01))
                    )
                case agent_events.SendHeartbeat():
                    self.heartbeat(device)
                case agent_events.Send():
                    self.send(device, action)
                case agent_events.Run():
                    self.run(device, action)
                case agent_events.Reply(reply_to, _, result):
                    self.answers[reply_to].append(result.error)

    def heartbeat(self, device: str) -> None:
        state = self.agents[device]
        self.seq += 1
        held = {
            key: HeldModule(module=each.module, state="ready" if key in state.ready else "loading", compute_s=0.01)
            for key, each in state.assigned.items()
        }
        seen = Heartbeat(
            session=self.sessions[device],
            seq=self.seq,
            epoch=state.fence[0],
            generation=state.fence[1],
            modules=held,
            alone=snapshot_of(state, {}).alone,
        )
        seen = decode(Heartbeat, encode(seen))
        self.later(device, "control", do=lambda: self.lead(events.HeartbeatReceived(device, seen)))

    def send(self, sender: str, send: agent_events.Send) -> None:
        def arrive() -> None:
            if send.receiver in self.agents:
                self.act(send.receiver, agent_events.Received(sender, send.message, send.values))
            elif isinstance(send.message, NodeInputs) and self.chance.random() < 0.5:  # the broker may say so
                error = ErrorBody(code=ErrorCode.MODULE_FAILED, message="nobody receives messages")
                failed = failure(send.message, error, retry=True)
                self.act(sender, agent_events.NotReceived(send.message.coordinator, failed, self.now_s + 1))

        self.later(sender, send.receiver, do=arrive)

    def run(self, device: str, run: agent_events.Run) -> None:
        deadly = any(isinstance(value, RawInput) and value.data == DEADLY.data for value in run.values)
        ran = agent_events.Ran(run.run, Output({"z": np.ones(1, np.float32)}, {"label": "a"}), None, self.now_s, 0.01)

        def computed() -> None:
            if deadly:
                self.die(device, run.payload)
            else:
                self.act(device, ran)

        self.later(device, "own", do=computed)

    def die(self, device: str, payload: str | None) -> None:
        if self.agents.pop(device, None) is None:
            return
        self.deaths.append((device, payload))
        will, self.channels[device, "own"] = offline(self.sessions[device]), deque()
        self.later(device, "control", do=lambda: self.lead(events.DeviceStateReceived(device, will)))

    # --- the sensor ---

    def ask(self, number: int, picture: RawInput) -> str:
        """Send a request to a front door that lives; the orchestrator gets it, too."""
        asked = requested("t", number, inputs={"image": picture}, expiry_s=600)
        self.lead(events.RequestReceived("t", asked.reply_to, asked.correlation, asked.payload))
        route = self.leader.routes["t"]
        for receivers in (route.front_door, route.second_door):
            if living := [device for device in receivers if device in self.agents]:
                self.later("data", living[0], do=partial(self.act, self.chance.choice(living), asked))
        return asked.reply_to

    def ask_until_told(self, requests: dict[int, RawInput]) -> None:
        for _ in range(12):
            for number, picture in requests.items():
                reply_to = f"{PREFIX}/clients/camera/results/{number}"
                if not [error for error in self.answers[reply_to] if error is None or error.code != ErrorCode.NO_ROUTE]:
                    self.ask(number, picture)
            self.quiet()
            dead = [device for device in DEVICES if device not in self.agents]
            for device in dead if self.rebirths else ():
                payload = next(payload for name, payload in reversed(self.deaths) if name == device)
                self.begin(device, died_with=(payload,) if payload else ())
            self.quiet()


@pytest.mark.parametrize("orders", [2, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize("rebirths", [False, True], ids=["nobody restarts them", "restarted"])
@pytest.mark.parametrize("redundancy", [1, 2])
def test_a_deadly_request_takes_down_two_devices_at_most_and_all_others_are_answered(
    redundancy: int, orders: int, *, rebirths: bool
) -> None:
    for seed in range(orders):
        site = Simulation(seed, redundancy=redundancy, rebirths=rebirths)
        requests = dict.fromkeys(range(1, 5), HONEST) | {9: DEADLY}
        site.ask_until_told(requests)
        assert len(site.deaths) <= 2, f"seed {seed}: {site.deaths}"
        for number, picture in requests.items():
            told = site.answers[f"{PREFIX}/clients/camera/results/{number}"]
            assert told, f"seed {seed}: {number}"
            codes = {error.code if error else None for error in told}
            right = {ErrorCode.MODULE_FAILED} if picture is DEADLY else {None, ErrorCode.NO_ROUTE}
            assert codes <= right, f"seed {seed}: {number}: {codes}"
        assert payload_of(DEADLY) in site.leader.quarantine.refused, f"seed {seed}"
        site.ask_until_told({10: DEADLY, 11: HONEST})
        assert len(site.deaths) <= 2, f"seed {seed}: the same payload again, by another request"


@pytest.mark.parametrize("orders", [3, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize("dying", [2, 3])
def test_devices_that_lose_their_power_at_once_with_an_honest_request_condemn_nothing(dying: int, orders: int) -> None:
    for seed in range(orders):
        site = Simulation(seed, redundancy=1, rebirths=False)
        site.ask(1, HONEST)
        for _ in range(seed):
            site.step()
        front = list(site.leader.routes["t"].front_door)
        for device in [*front, *(each for each in DEVICES if each not in front)][:dying]:
            site.die(device, None)
        site.ask_until_told({1: HONEST, 2: HONEST})
        for number in (1, 2):
            told = site.answers[f"{PREFIX}/clients/camera/results/{number}"]
            assert told[-1] is None, f"seed {seed}: {told}"
        assert not site.leader.quarantine.refused


def payload_of(picture: RawInput) -> str:
    return inputs_digest({"image": picture})
