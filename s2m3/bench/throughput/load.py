"""Load on a site: requests at a stated rate (an open loop), or a stated number in flight (a closed loop).

Owns clock and counts. ``offer`` is the open loop: as real sensors do, it doesn't wait for answers, so it can overload a
site. ``saturate`` is the closed loop, which finds the capacity. Its requests need not be in time.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

from broker.client import Client, Response
from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskName

Inputs = Mapping[str, RawInput]
SLACK_S = 5.0  # after a deadline, until the client must have ended the request


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
    client: Client, tasks: Sequence[TaskName], inputs: Mapping[TaskName, Inputs], *, seconds: float, in_flight: int
) -> float:
    """The capacity: answers per second with this many requests always in flight, the tasks in turn."""
    began_s, number, answered = time.monotonic(), 0, 0
    waiting: set[Future[Response]] = set()
    while time.monotonic() - began_s < seconds:
        while len(waiting) < in_flight:
            task = tasks[number % len(tasks)]
            waiting.add(client.submit(task, inputs[task], deadline_s=60.0))
            number += 1
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        answered += sum(future.result().ok for future in done)
    lasted_s = time.monotonic() - began_s
    wait(waiting)
    return answered / lasted_s
