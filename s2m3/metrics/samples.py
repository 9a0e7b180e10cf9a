"""The samples for Prometheus: the picture of a site as metric families. Pure.

Owns the names of the metrics, their labels and their help. Doesn't know where the picture comes from.

Invariants:
- Each label has a bounded set of values; what a process may invent counts under ``other``.
- No two samples of a family have the same labels.
- A counter of an agent has the agent as its ``device`` and begins at 0 when the agent starts, as Prometheus expects; a
  restart of the exporter doesn't change it. Other counters begin when the exporter starts.
- A figure of a device that is down isn't shown, except its counters: their sum would fall.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from broker.protocol.errors import ErrorCode
from broker.protocol.reports import TaskCounters
from s2m3.metrics.picture import BOUNDS_S, OTHER, Histogram, Picture, heartbeat_of

MAX_REASONS = 16  # of one device, task or kind
MAX_VERSIONS = 64
MAX_LABEL = 64  # characters of a label that isn't an id
ANSWERED = "answered"
_OUTCOMES = frozenset(code.value for code in ErrorCode)
_PREFIX = "s2m3_"
_BRIDGE_HELP = "1 while the site's bridge to this core is up; only at a core."
_Samples = Iterable[tuple[tuple[str, ...], float]]


def families(picture: Picture, *, connected: bool, version: str) -> list[Metric]:
    """All metrics of a site at this moment, also those without samples."""
    made = [
        _gauge("broker_connected", "1 while the exporter is connected to the broker.", (), [((), connected)]),
        *([_gauge("bridge_up", _BRIDGE_HELP, (), [((), picture.bridge)])] if picture.at_core else []),
        *_of_site(picture, version),
        *_of_tasks(picture),
        *_of_devices(picture),
        *_of_heartbeats(picture),
        *_of_happenings(picture),
    ]
    shown = {f"{_PREFIX}{name}" for name in ("broker_connected", "build_info", *(["bridge_up"] if connected else []))}
    if not connected or (picture.at_core and not picture.bridge):  # a gauge of a site that can't be seen is a guess
        for family in made:
            if family.type == "gauge" and family.name not in shown:
                family.samples.clear()
    return made


def _of_site(picture: Picture, version: str) -> Iterator[Metric]:
    leads = picture.leader is not None and picture.leader.online
    yield _gauge("leader", "1 while an orchestrator leads.", (), [((), leads)])
    agents = {each.version[:MAX_LABEL] for each in picture.summaries.values()}
    versions = [("exporter", version), *(("agent", each) for each in sorted(agents)[:MAX_VERSIONS])]
    help_text = "The version of the exporter, and those of the agents; always 1."
    yield _gauge("build_info", help_text, ("role", "version"), [(each, 1) for each in versions])


def _of_tasks(picture: Picture) -> Iterator[Metric]:
    statuses = sorted(picture.statuses.items())
    served = [((task,), status.revision is not None) for task, status in statuses]
    yield _gauge("task_served", "1 while the task has a revision that is served.", ("task",), served)
    candidates = [((task, each.candidate.state), 1) for task, each in statuses if each.candidate is not None]
    help_text = "1 while a deployed revision of the task isn't served yet: it is loading, or refused."
    yield _gauge("task_candidate", help_text, ("task", "state"), candidates)

    unanswerable: Counter[tuple[str, ...]] = Counter()
    for task, status in statuses:
        unanswerable.update({(task, reason): n for reason, n in _bounded(status.unanswerable).items()})
    for reasons in picture.unanswered.unanswerable.values() if picture.unanswered else ():
        unanswerable.update({("", reason): n for reason, n in _bounded(reasons).items()})
    help_text = "Requests that could not be answered, since this orchestrator leads; task is empty for unknown names."
    yield _counter("unanswerable_requests", help_text, ("task", "reason"), unanswerable.items())

    counted = [((t, device), n) for device, each in sorted(picture.summaries.items()) for t, n in each.counters.items()]
    outcomes: Counter[tuple[str, ...]] = Counter()
    for (task, device), counters in counted:
        outcomes[task, device, ANSWERED] += counters.answered
        for code, number in counters.errors.items():
            outcomes[task, device, code if code in _OUTCOMES else OTHER] += number
    help_text = "Requests that ended, by their coordinator's summary of every 30 seconds."
    yield _counter("requests", help_text, ("task", "device", "outcome"), outcomes.items())

    help_text = "Seconds from a request's arrival at its coordinator until it was answered."
    latency = HistogramMetricFamily(f"{_PREFIX}request_duration_seconds", help_text, labels=("task", "device"))
    for labels, counters in counted:
        latency.add_metric(labels, _cumulative(counters), None)  # agents publish no sum
    yield latency


def _of_devices(picture: Picture) -> Iterator[Metric]:
    up = [((device,), picture.is_up(device)) for device in picture.devices]
    yield _gauge("device_up", "1 while the device is online and not dead or away.", ("device",), up)
    standings = [((device, each.standing), 1) for device, each in sorted(picture.standings.items())]
    help_text = "1 for what the orchestrator thinks of the device now."
    yield _gauge("device_standing", help_text, ("device", "standing"), standings)

    memory: Counter[tuple[str, ...]] = Counter()
    otherwise = "unknown" if picture.at_core else "unassigned"  # no bridge carries assignments
    for device, summary in sorted(picture.summaries.items()):
        roles = picture.roles.get(device, {})
        for key, module in summary.modules.items() if picture.is_up(device) else ():
            memory[device, module.module, roles.get(key, otherwise)] += module.memory_bytes
    help_text = "Memory of a module on a device: measured once it is ready, before that the task file's."
    yield _gauge("module_memory_bytes", help_text, ("device", "module", "role"), memory.items())


def _of_heartbeats(picture: Picture) -> Iterator[Metric]:
    found = {device: heartbeat_of(picture, device) for device in picture.devices if picture.is_up(device)}
    heard = {device: each for device, each in found.items() if each is not None}
    queues: Counter[tuple[str, ...]] = Counter()
    dropped: Counter[tuple[str, ...]] = Counter()
    for device, heartbeat in heard.items():
        for held in heartbeat.modules.values():
            queues[device, held.module] += held.queue
        dropped.update({(device, reason): n for reason, n in _bounded(heartbeat.dropped).items()})
    numbers: Mapping[str, tuple[str, Callable[[str], float]]] = {
        "memory_budget_bytes": ("Memory for modules of the device.", lambda name: heard[name].memory_bytes),
        "memory_used_bytes": ("Memory that the device's modules occupy.", lambda name: heard[name].memory_used_bytes),
        "requests_in_flight": ("Requests that the device coordinates now.", lambda name: heard[name].in_flight),
    }
    for name, (help_text, number) in numbers.items():
        yield _gauge(name, help_text, ("device",), [((device,), number(device)) for device in heard])
    yield _gauge("module_queue_length", "Nodes that wait for the module.", ("device", "module"), queues.items())
    help_text = "Messages that the agent refused since it started."
    yield _counter("messages_dropped", help_text, ("device", "reason"), dropped.items())
    caches = {device: each.output_cache for device, each in heard.items() if each.output_cache is not None}
    help_text = "Nodes since the device started: computed, or kept, which took the output of equal work."
    nodes = [
        ((name, how), n)
        for name, each in caches.items()
        for how, n in (("computed", each.computed), ("kept", each.hits))
    ]
    yield _counter("output_cache_nodes", help_text, ("device", "outcome"), nodes)
    used = [((name,), each.used_bytes) for name, each in caches.items()]
    yield _gauge("output_cache_used_bytes", "Memory of the kept outputs of the device.", ("device",), used)


def _of_happenings(picture: Picture) -> Iterator[Metric]:
    """The counts that begin when the exporter starts."""
    events = [((kind,), number) for kind, number in picture.events.items()]
    yield _counter("events", "Events that the site told since the exporter started.", ("type",), events)
    moves = [((signal,), number) for signal, number in picture.replacements.items()]
    help_text = (
        "Modules that another device took, by why: the old one's will, its missing heartbeats, a drain, or other."
    )
    yield _counter("replacements", help_text, ("signal",), moves)
    help_text = "Seconds from a dead device's last heartbeat until the orchestrator said so, by what told it."
    detections = [((signal,), each) for signal, each in picture.detections.items()]
    yield _histogram("detection_duration_seconds", help_text, ("signal",), detections)
    help_text = "Seconds of a node of a request, by traces: at most 20 requests a second of each coordinator."
    yield _histogram("node_duration_seconds", help_text, ("task", "node", "phase"), picture.nodes.items())
    refused = [((template,), number) for template, number in picture.refused.items()]
    help_text = "Messages that the exporter could not read, by the template of their topic."
    yield _counter("exporter_messages_refused", help_text, ("topic",), refused)
    help_text = "Messages for which the exporter had no room."
    yield _counter("exporter_messages_left_out", help_text, (), [((), picture.left_out)])


def _gauge(name: str, help_text: str, labels: tuple[str, ...], samples: _Samples) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, help_text, labels=labels)
    for values, number in samples:
        family.add_metric(values, float(number))
    return family


def _counter(name: str, help_text: str, labels: tuple[str, ...], samples: _Samples) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, help_text, labels=labels)
    for values, number in sorted(samples):
        family.add_metric(values, number)
    return family


def _histogram(
    name: str, help_text: str, labels: tuple[str, ...], samples: Iterable[tuple[tuple[str, ...], Histogram]]
) -> Metric:
    family = HistogramMetricFamily(_PREFIX + name, help_text, labels=labels)
    for values, each in sorted(samples, key=lambda one: one[0]):
        counts = zip((*BOUNDS_S, math.inf), itertools.accumulate(each.counts), strict=True)
        family.add_metric(values, [(_bound(bound_s), number) for bound_s, number in counts], each.sum_s)
    return family


def _cumulative(counters: TaskCounters) -> list[tuple[str, float]]:
    """The buckets of the answers, each with those below; the last one has all answers."""
    bounds_s = sorted({*BOUNDS_S, 30.0, math.inf})
    buckets = []
    for bound_s in bounds_s:
        below = sum(number for upper_s, number in counters.latency_s.items() if upper_s <= bound_s)
        buckets.append((_bound(bound_s), float(below)))
    return buckets


def _bounded(numbers: Mapping[str, int]) -> dict[str, int]:
    """Numbers by reason; beyond ``MAX_REASONS`` reasons they count under ``other``."""
    kept = dict(sorted(numbers.items())[:MAX_REASONS])
    rest = sum(numbers.values()) - sum(kept.values())
    shown: Counter[str] = Counter({OTHER: rest} if rest else {})
    for reason, number in kept.items():
        shown[reason[:MAX_LABEL]] += number
    return dict(shown)


def _bound(bound_s: float) -> str:
    return "+Inf" if bound_s == math.inf else str(bound_s)
