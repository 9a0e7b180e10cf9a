"""A device under loads up to three times its capacity, in simulated time: its goodput, and the share of each task.

The agent's own rules, one event after the other; the compute thread is a simulated one that takes what modules take.
"""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import count

import numpy as np
import pytest

from broker.protocol.messages import Route
from edge_agent.decide import decide
from edge_agent.events import Action, Event, ModuleReady, NodeRun, Ran, Reply, Requested, Run, Tick
from edge_agent.modules import Output
from tests import builders
from tests.builders import PREFIX, able, agent, module, route_node

SECONDS = 60.0
DEADLINE_S = 2.0
COSTS_S = {"encoder": 0.08, "head": 0.02}
CAPACITY_PER_S = 1 / sum(COSTS_S.values())


SPECS = {part: module(part) for part in COSTS_S}
COST_OF = {each.key: COSTS_S[part] for part, each in SPECS.items()}


def two_node_route(task: str) -> Route:
    cost = {part: able("gw-a", compute_s=seconds) for part, seconds in COSTS_S.items()}
    needs = {"encoder": ("text",), "head": ("encoder",)}
    return builders.route(task, {part: route_node(SPECS[part].key, needs[part], cost[part]) for part in COSTS_S})


class Simulation:
    """One device that serves two tasks with the same two modules."""

    def __init__(self, slow_from_s: float = float("inf"), factor: float = 1.0) -> None:
        self.state = agent("gw-a", *SPECS.values(), routes=[two_node_route("one"), two_node_route("other")])
        self._slow_from_s, self._factor = slow_from_s, factor
        for key, seconds in COST_OF.items():
            decide(self.state, ModuleReady(key, seconds), 0.0)
        self._agenda: list[tuple[float, int, Event]] = []
        self._order = count()
        self._free_s = 0.0  # when the compute thread is
        self._asked_s: dict[bytes, float] = {}
        self.in_time: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def run(self, rates: dict[str, float]) -> None:
        """Send requests at these rates for ``SECONDS``, and go on until all have ended."""
        for task, rate in rates.items():
            for number in range(round(rate * SECONDS)):
                name = f"{task}/{number}".encode()
                asked = Requested(
                    task, b"a cat", "text/plain", f"{PREFIX}/clients/c/results/1", name, round(DEADLINE_S)
                )
                self._asked_s[name] = number / rate
                self._put(number / rate, asked)
        while self._agenda:
            now_s, _, event = heapq.heappop(self._agenda)
            self._carry_out(decide(self.state, event, now_s), now_s)
            due_s = self.state.next_deadline_s()
            if due_s is not None and (not self._agenda or due_s < self._agenda[0][0]):
                self._put(max(now_s, due_s), Tick())

    def _carry_out(self, actions: list[Action], now_s: float) -> None:
        for action in actions:
            if isinstance(action, Run):
                self._compute(action.run, COST_OF[action.key], now_s)
            elif isinstance(action, Reply):
                task = action.correlation.decode().partition("/")[0]
                if action.result.error is not None:
                    self.errors[action.result.error.code] += 1
                elif now_s <= self._asked_s[action.correlation] + DEADLINE_S:
                    self.in_time[task] += 1

    def _compute(self, run: NodeRun, cost_s: float, now_s: float) -> None:
        began_s = max(now_s, self._free_s)
        cost_s *= self._factor if began_s >= self._slow_from_s else 1.0
        self._free_s = began_s + cost_s
        output = Output({"x": np.ones(1, dtype=np.float32)}, {"label": "x"})
        self._put(self._free_s, Ran(run, output, None, began_s, cost_s))

    def _put(self, at_s: float, event: Event) -> None:
        heapq.heappush(self._agenda, (at_s, next(self._order), event))


@pytest.mark.parametrize("load", [0.25, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_goodput_does_not_fall_under_overload(load: float) -> None:
    simulation = Simulation()
    simulation.run(dict.fromkeys(("one", "other"), load * CAPACITY_PER_S / 2))
    answered = simulation.in_time.total()
    assert answered >= 0.95 * min(1.0, load) * CAPACITY_PER_S * SECONDS, (answered, simulation.errors)
    assert answered + simulation.errors.total() == round(load * CAPACITY_PER_S / 2 * SECONDS) * 2, "all have ended"
    assert set(simulation.errors) <= {"overloaded"}, "refused at once; no admitted request was left unfinished"


def test_a_device_that_becomes_four_times_slower_is_still_used_in_full() -> None:
    simulation = Simulation(slow_from_s=SECONDS / 2, factor=4.0)
    simulation.run(dict.fromkeys(("one", "other"), CAPACITY_PER_S))
    possible = CAPACITY_PER_S * SECONDS * (0.5 + 0.5 / 4)
    assert simulation.in_time.total() >= 0.85 * possible, (  # some were admitted before it became slow
        simulation.in_time,
        possible,
        simulation.errors,
    )


def test_a_task_with_ten_times_the_requests_leaves_the_other_its_share() -> None:
    simulation = Simulation()
    simulation.run({"one": 3 * CAPACITY_PER_S * 10 / 11, "other": 3 * CAPACITY_PER_S / 11})
    asked_of_other = 3 / 11 * CAPACITY_PER_S * SECONDS
    assert simulation.in_time["other"] >= 0.9 * asked_of_other, "it asks for less than half and gets all of it"
    assert simulation.in_time.total() >= 0.9 * CAPACITY_PER_S * SECONDS


def test_two_overloading_tasks_have_equal_shares() -> None:
    simulation = Simulation()
    simulation.run({"one": 2.5 * CAPACITY_PER_S, "other": CAPACITY_PER_S})
    shares = [simulation.in_time[task] / simulation.in_time.total() for task in ("one", "other")]
    assert shares == pytest.approx([0.5, 0.5], abs=0.1)
