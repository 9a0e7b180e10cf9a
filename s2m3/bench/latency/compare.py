"""Split against cloud and local: the same requests, in turn, to three sites that run at the same time.

Owns the three and their comparison. ``cloud``: all modules on one machine behind the uplink. ``local``: all modules on
the device where requests start. ``split``: the site's devices, placed by the orchestrator. The three are asked in turn,
so that other load on this machine touches all alike. Each request waits for the answer before it, so that no two sites
compute at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from s2m3.bench.latency.settings import LatencySettings, Machine
from s2m3.bench.latency.trial import Trial
from s2m3.bench.latency.workloads import Workload
from s2m3.testbed.proxy import UNSHAPED, LinkShape

WARM_UP = 2  # requests to each site before those that count

Progress = Callable[[str], None]


def compare(
    workload: Workload, settings: LatencySettings, *, models: Path, requests: int, progress: Progress
) -> dict[str, Any]:
    """The report of one workload, measured by this number of requests to each site after the warm-up.

    Returns:
        The report of each site, by name, and the reductions: 0.3 means that split takes 30 % less time than cloud.

    Raises:
        SiteFailed: a site didn't serve.
    """
    inputs = workload.inputs()
    with ExitStack() as stack:
        trials = {name: stack.enter_context(trial) for name, trial in _trials(workload, settings, models).items()}
        for name, trial in trials.items():
            progress(f"{workload.name}: {name}: starting")
            trial.deploy()
        for trial in trials.values():
            trial.settle()
        answers: dict[str, list[object]] = {}
        for number in range(-WARM_UP, requests):
            progress(f"{workload.name}: request {max(0, number + 1)} of {requests}")
            for name, trial in trials.items():
                answer = trial.ask(inputs, counts=number >= 0).result.answer
                if answer not in answers.setdefault(name, []):
                    answers[name].append(answer)
        reports = {name: trial.report() for name, trial in trials.items()}
    latency_s = {name: report["latency_s"] for name, report in reports.items()}
    return {
        "workload": workload.name,
        "input_bytes": {name: len(raw.data) for name, raw in inputs.items()},
        **reports,
        "reduction_against_cloud": {
            "p50": 1 - latency_s["split"]["p50"] / latency_s["cloud"]["p50"],
            "p95": 1 - latency_s["split"]["p95"] / latency_s["cloud"]["p95"],
        },
        "fastest": min(latency_s, key=lambda name: latency_s[name]["p50"]),
        "same_answers": all(given == answers["cloud"] and len(given) == 1 for given in answers.values()),
    }


def _trials(workload: Workload, settings: LatencySettings, models: Path) -> dict[str, Trial]:
    def trial(name: str, machines: dict[Machine, LinkShape], source: str | None) -> Trial:
        agents = [machine.config(shape, str(models)) for machine, shape in machines.items()]
        links = {machine.id: shape for machine, shape in machines.items() if shape != UNSHAPED}
        return Trial(name, agents, links, workload.task.model_copy(update={"source": source}))

    site = dict.fromkeys(settings.devices, settings.network.shape) | {settings.source: UNSHAPED}
    return {
        "cloud": trial("cloud", {settings.cloud: settings.uplink.shape}, None),
        "local": trial("local", {settings.source: UNSHAPED}, settings.source.id),
        "split": trial("split", site, settings.source.id),
    }
