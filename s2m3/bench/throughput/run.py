"""A real site under loads from a quarter to three times its capacity. Owns the site and the order of the trials.

The devices are real agents in processes of their own. ``speed`` slows their compute by waiting. So the benchmark
measures queueing, not how devices, broker and load generator share the few cores of this machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from broker.client import Client
from broker.protocol.specs import TaskName
from edge_agent.config import AgentConfig
from s2m3.bench.throughput.load import Inputs, Outcome, offer, saturate
from s2m3.catalogue import load_task
from s2m3.reference.pictures import REQUESTS
from s2m3.testbed.percentiles import percentile
from s2m3.testbed.site import Site

FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
TASKS = ("classify", "zero-shot")
GREEDY = 5.0  # times the other task's rate, in the trial of fairness
IN_FLIGHT = 6  # enough to keep every device busy, few enough that none is refused
WARM_UP_S = 15.0
GOAL = 0.9  # of the peak goodput, at the greatest load

Progress = Callable[[str], None]


def measure(
    *, devices: int, speed: float, seconds: float, deadline_s: float, broker: str, progress: Progress
) -> dict[str, Any]:
    """The report of a site, measured: its capacity, multiples of it as load, and two tasks with unequal load.

    Each agent has this speed relative to this machine, and each trial takes these seconds. The broker is ``mosquitto``,
    ``embedded`` or a URL.

    Raises:
        SiteFailed: the tasks aren't served.
    """
    agents = [AgentConfig(id=f"gw-{chr(97 + number)}", speed=speed) for number in range(devices)]
    inputs = {task: next(each.inputs for each in REQUESTS if each.task == task) for task in TASKS}
    with (
        Site(broker, agents) as site,
        Client(site.url, client_id="bench-sensor", site=site.prefix, first_retry_s=2 * deadline_s) as client,
    ):
        progress("waiting for the devices")
        site.serve([load_task(f"pocket/{task}") for task in TASKS])
        progress("warming up")  # devices still load and measure standbys, which delays forward passes
        saturate(client, TASKS, inputs, seconds=max(WARM_UP_S, seconds), in_flight=2)
        progress("measuring the capacity")
        capacity = saturate(client, TASKS, inputs, seconds=seconds, in_flight=IN_FLIGHT)
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
        "latency_s": {f"p{share}": percentile(latency_s, share) for share in (50, 95)},
        "tasks": {task: each.in_time / seconds for task, each in outcomes.items()},
    }
