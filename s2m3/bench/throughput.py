"""The answers in time of a real site under loads from a quarter to three times its capacity: ``s2m3 bench throughput``.

Owns the site, the order of the trials, and the two loads. ``offer`` is an open loop, requests at a stated rate: as real
sensors do, it doesn't wait for answers, so it can overload a site. ``saturate`` is a closed loop, a stated number in
flight, which finds the capacity. Its requests need not be in time.

The devices are real agents in processes of their own. ``speed`` slows their compute by waiting. So the benchmark
measures queueing, not how devices, broker and load generator share the few cores of this machine.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

from broker.client import Client, Response
from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskName
from broker.transport.connection import Connection
from edge_agent.config import AgentConfig
from s2m3.catalogue import load_task
from s2m3.reference.pictures import REQUESTS
from s2m3.testbed.percentiles import percentiles
from s2m3.testbed.site import Site

FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
TASKS = ("classify", "zero-shot")
GREEDY = 5.0  # times the other task's rate, in the trial of fairness
IN_FLIGHT = 6  # enough to keep every device busy, few enough that none is refused
WARM_UP_S = 15.0
GOAL = 0.9  # of the peak goodput, at the greatest load
DEADLINE_S = 60.0  # of a request whose seconds don't count
SLACK_S = 5.0  # after a deadline, until the client must have ended the request

Inputs = Mapping[str, RawInput]


@dataclass
class Outcome:
    """The outcomes of the requests of one task."""

    offered: int = 0
    in_time: int = 0  # answered before the deadline: the goodput
    late: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latency_s: list[float] = field(default_factory=list)  # of those answered in time

    def count(self, response: Response, deadline_s: float) -> None:
        """Adds a request that ended."""
        self.offered += 1
        if response.result.error is not None:
            self.errors[response.result.error.code] += 1
        elif response.latency_s <= deadline_s:
            self.in_time += 1
            self.latency_s.append(response.latency_s)
        else:
            self.late += 1


def offer(
    client: Client,
    rates: Mapping[TaskName, float],
    inputs: Mapping[TaskName, Inputs],
    *,
    seconds: float,
    deadline_s: float,
) -> Mapping[TaskName, Outcome]:
    """Sends every task's requests evenly spaced at its rate (per second), and waits until each has ended."""
    times = sorted((number / rate, task) for task, rate in rates.items() for number in range(round(seconds * rate)))
    began_s, pause = time.monotonic(), threading.Event()
    sent: list[tuple[TaskName, Future[Response]]] = []
    for at_s, task in times:
        pause.wait(max(0.0, began_s + at_s - time.monotonic()))
        sent.append((task, client.submit(task, inputs[task], deadline_s=deadline_s)))
    outcomes = {task: Outcome() for task in rates}
    for task, future in sent:
        outcomes[task].count(future.result(deadline_s + SLACK_S), deadline_s)
    return outcomes


def saturate(
    client: Client,
    requests: Sequence[tuple[TaskName, Inputs]],
    *,
    seconds: float,
    in_flight: int,
    note: Callable[[int, Response], object] = lambda *_: None,
) -> float:
    """The capacity: answers per second with this many requests always in flight, these in turn.

    ``note`` gets each response that came in these seconds, with the place of its request.
    """
    began_s, number, answered = time.monotonic(), 0, 0
    waiting: dict[Future[Response], int] = {}
    while time.monotonic() - began_s < seconds:
        while len(waiting) < in_flight:
            place = number % len(requests)
            waiting[client.submit(*requests[place], deadline_s=DEADLINE_S)] = place
            number += 1
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            response = future.result()
            answered += response.ok
            note(waiting.pop(future), response)
    lasted_s = time.monotonic() - began_s
    wait(waiting)
    return answered / lasted_s


def measure(
    *,
    devices: int,
    speed: float,
    seconds: float,
    deadline_s: float,
    broker: str | Connection,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """The report of a site, measured: its capacity, multiples of it as load, and two tasks with unequal load.

    Each agent has this speed relative to this machine, and each trial takes these seconds. The broker is ``mosquitto``,
    ``embedded`` or a running one.

    Raises:
        SiteFailed: the tasks aren't served.
    """
    agents = [AgentConfig(id=f"gw-{chr(97 + number)}", speed=speed) for number in range(devices)]
    inputs = {task: next(each.inputs for each in REQUESTS if each.task == task) for task in TASKS}
    with (
        Site(broker, agents) as site,
        Client(site.connection, first_retry_s=2 * deadline_s) as client,
    ):
        progress("waiting for the devices")
        site.serve([load_task(f"pocket/{task}") for task in TASKS])
        progress("warming up")  # devices still load and measure standbys, which delays forward passes
        repeated = [(task, inputs[task]) for task in TASKS]
        saturate(client, repeated, seconds=max(WARM_UP_S, seconds), in_flight=2)
        progress("measuring the capacity")
        capacity = saturate(client, repeated, seconds=seconds, in_flight=IN_FLIGHT)
        rows = []
        for factor in FACTORS:
            progress(f"offering {factor:g} times {capacity:.1f} requests/s")
            rates = {task: factor * capacity / len(TASKS) for task in TASKS}
            rows.append(
                {"factor": factor} | _row(offer(client, rates, inputs, seconds=seconds, deadline_s=deadline_s), seconds)
            )
        progress("offering unequal shares")
        shares = _fairness(client, capacity, inputs, seconds=seconds, deadline_s=deadline_s)
    peak = max(row["goodput_per_s"] for row in rows)
    kept = rows[-1]["goodput_per_s"] / peak if peak else 0.0
    settings = {"devices": devices, "speed": speed, "seconds": seconds, "deadline_s": deadline_s, "broker": broker}
    return {
        "settings": settings,
        "capacity_per_s": capacity,
        "loads": rows,
        "peak_goodput_per_s": peak,
        "goodput_kept_at_most_load": kept,
        "fairness": shares,
        "ok": kept >= GOAL,
    }


def _fairness(
    client: Client, capacity: float, inputs: Mapping[TaskName, Inputs], *, seconds: float, deadline_s: float
) -> dict[str, Any]:
    """Each task's load and answers at three times the capacity, if one task has ``GREEDY`` times the other's rate."""
    rate = FACTORS[-1] * capacity / (1 + GREEDY)
    rates = dict(zip(TASKS, (GREEDY * rate, rate), strict=True))
    outcomes = offer(client, rates, inputs, seconds=seconds, deadline_s=deadline_s)
    return {
        task: {"offered_per_s": each.offered / seconds, "answered_per_s": each.in_time / seconds}
        for task, each in outcomes.items()
    }


def _row(outcomes: Mapping[TaskName, Outcome], seconds: float) -> dict[str, Any]:
    offered = sum(each.offered for each in outcomes.values())
    in_time = sum(each.in_time for each in outcomes.values())
    errors = sum((each.errors for each in outcomes.values()), Counter[str]())
    latency_s = [seconds for each in outcomes.values() for seconds in each.latency_s]
    return {
        "offered_per_s": offered / seconds,
        "goodput_per_s": in_time / seconds,
        "late": sum(each.late for each in outcomes.values()),
        "errors": {str(code): times for code, times in errors.items()},
        "latency_s": percentiles(latency_s, 50, 95),
        "tasks": {task: each.in_time / seconds for task, each in outcomes.items()},
    }
