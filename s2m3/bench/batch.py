"""Whether batches pay on a device: a site at saturation without them and with them: ``s2m3 bench batch``.

Owns the two sites, and what is compared. Each site is one device with all of the task's modules and ``cache: 0``, so
that equal requests are computed each time. Real photographs, spoken sentences and texts, in turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from pydantic import JsonValue

from broker.client import Client, Response
from broker.protocol.messages import About
from broker.protocol.specs import TaskSpec
from broker.transport.connection import Connection
from edge_agent.config import AgentConfig
from s2m3.bench.requests import requests
from s2m3.bench.throughput import DEADLINE_S, Inputs, saturate
from s2m3.export.compare import same_answer
from s2m3.testbed.percentiles import percentiles
from s2m3.testbed.site import Site, SiteFailed

GOAL = 1.3  # times the answers without batches
WARM_UP_S = 3.0
DEVICE = "gw-a"

Answer = Mapping[str, JsonValue]


def measure(
    task: TaskSpec,
    settings: Mapping[str, Any],
    *,
    batch: int,
    in_flight: int,
    seconds: float,
    broker: str | Connection,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """The report of both sites: whether batches give enough more answers, and the same ones.

    Args:
        task: what is asked.
        settings: of the device's agent, without its id, cache and batch.
        batch: the most requests in one pass of the second site.
        in_flight: requests that are under way, all the time.
        seconds: of each site, after the warm-up.
        broker: ``mosquitto``, ``embedded`` or a running one.
        progress: shows what is done now.

    Raises:
        SiteFailed: the task isn't served, or a request that is alone failed.
    """
    asked = requests(task)
    sites = {}
    for most in (1, batch):
        config = AgentConfig.model_validate({**settings, "id": DEVICE, "cache": 0, "batch": most})
        with Site(broker, [config], spares=False) as site:
            progress(f"batch {most}: waiting until the task is served")
            site.serve([task])
            progress(f"batch {most}: measuring")
            state = site.observer.devices.get(DEVICE)
            with Client(site.connection) as client:
                alone = [_answer(client.request(task.task, inputs, deadline_s=DEADLINE_S)) for inputs in asked]
                sites[most] = _saturated(client, task, asked, alone, in_flight=in_flight, seconds=seconds)
    without, batched = sites[1], sites[batch]
    ratio = batched["per_s"] / without["per_s"] if without["per_s"] else 0.0
    is_same = batched["same_answers"] == batched["answers"] > 0
    no_errors = not (without["errors"] or batched["errors"])
    return {
        "settings": {"task": task.task, "batch": batch, "in_flight": in_flight, "seconds": seconds, **settings},
        "device": _named(state.about) if state else None,
        "without": without,
        "batched": batched,
        "ratio": ratio,
        "goal": GOAL,
        "ok": ratio >= GOAL and is_same and no_errors,
    }


def _saturated(
    client: Client,
    task: TaskSpec,
    asked: Sequence[Inputs],
    alone: Sequence[Answer],
    *,
    in_flight: int,
    seconds: float,
) -> dict[str, Any]:
    """Answers per second, the seconds to them, and how they differ from those to requests that were alone."""
    seen: list[tuple[int, Response]] = []
    repeated = [(task.task, inputs) for inputs in asked]
    saturate(client, repeated, seconds=WARM_UP_S, in_flight=in_flight)
    per_s = saturate(client, repeated, seconds=seconds, in_flight=in_flight, note=lambda *each: seen.append(each))
    pairs = [(alone[number], each.result.answer) for number, each in seen if each.ok]
    return {
        "per_s": per_s,
        "latency_s": percentiles([each.latency_s for _, each in seen if each.ok], 50, 95),
        "errors": dict(Counter(str(each.result.error.code) for _, each in seen if each.result.error)),
        "answers": len(pairs),
        "same_answers": sum(same_answer(one, other) for one, other in pairs),
        "largest_score_difference": max((abs(_score(one) - _score(other)) for one, other in pairs), default=None),
    }


def _answer(response: Response) -> Answer:
    if not response.ok or response.result.answer is None:
        raise SiteFailed(f"a request that was alone failed: {response.result.error}")
    return response.result.answer


def _score(answer: Answer | None) -> float:
    return cast("float", (answer or {}).get("score", 0.0))


def _named(about: About | None) -> str | None:
    return (about.accelerator or about.cpu) if about else None
