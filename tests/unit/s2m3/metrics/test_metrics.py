"""A site's messages become samples: counters that agents begin again, bounded labels, and whether the site serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from pydantic import BaseModel

from broker.protocol import topics
from broker.protocol.codec import encode
from broker.protocol.messages import HeldModule
from broker.protocol.reports import (
    Candidate,
    ModuleSummary,
    Standing,
    Summary,
    SystemEvent,
    TaskCounters,
    TaskStatus,
    Trace,
    TraceNode,
    UnansweredRequests,
)
from s2m3 import message_room
from s2m3.metrics import picture as pictures
from s2m3.metrics.health import health
from s2m3.metrics.picture import Picture
from s2m3.metrics.samples import families
from tests.builders import assignment, heartbeat, leader, module, offline, online
from tests.prometheus import samples

ENCODER = module("encoder", memory_bytes=1000)


class Site:
    """A picture, and what is published; ``at_core`` is a site that is seen from its core."""

    def __init__(self, *, at_core: bool = False) -> None:
        self.picture = Picture(at_core=at_core)

    def publish(self, topic: topics.Topic, message: BaseModel | bytes | None, at_s: float = 0.0, **ids: str) -> None:
        payload = message if isinstance(message, bytes) else encode(message) if message else b""
        incoming = topics.read("s2m3/v1", topic.at("s2m3/v1", **ids), payload)
        assert incoming is not None
        self.picture.note(incoming, at_s)

    def samples(self, name: str, *, connected: bool = True) -> dict[tuple[str, ...], float]:
        """The samples of one name by their labels' values, as Prometheus reads them."""
        found = families(self.picture, connected=connected, version="1.2.3")
        registry = CollectorRegistry()
        registry.register(_Collected(found))
        return samples(generate_latest(registry).decode(), name)

    def standing(self, device: str, standing: str, at_s: float = 0.0) -> None:
        made = Standing.model_validate({"device": device, "standing": standing, "since": 1.0, "why": "because"})
        self.publish(topics.DEVICE_STANDING, made, at_s, device=device)

    def event(self, kind: str, at_s: float = 0.0, **fields: Any) -> None:
        self.publish(topics.ORCHESTRATOR_EVENTS, SystemEvent(type=kind, at=1.0, **fields), at_s)

    def summary(self, device: str, session: int = 1, **counters: TaskCounters) -> None:
        held = {ENCODER.key: ModuleSummary(module="encoder", state="ready", memory_bytes=1234)}
        made = Summary(session=session, at=1.0, version="0.9", modules=held, counters=counters)
        self.publish(topics.DEVICE_SUMMARY, made, device=device)


class _Collected:
    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        yield from self._found


def counted(answered: int, **errors: int) -> TaskCounters:
    fields = {"requests": answered + sum(errors.values()), "answered": answered, "errors": errors}
    return TaskCounters.model_validate(fields | {"latency_s": {0.1: answered - 1, 30.0: 1} if answered else {}})


def test_requests_count_by_task_coordinator_and_outcome() -> None:
    site = Site()
    site.summary("gw-a", classify=counted(9, overloaded=2))
    site.summary("gw-b", classify=counted(3))
    assert site.samples("s2m3_requests_total") == {
        ("classify", "gw-a", "answered"): 9,
        ("classify", "gw-a", "overloaded"): 2,
        ("classify", "gw-b", "answered"): 3,
    }


def test_a_counter_begins_again_with_its_agent_and_no_other_one_changes() -> None:
    site = Site()
    site.summary("gw-a", session=1, classify=counted(9))
    site.summary("gw-b", session=5, classify=counted(3))
    site.summary("gw-a", session=2, classify=counted(1))
    assert list(site.samples("s2m3_requests_total").values()) == [1, 3]


def test_a_dead_device_keeps_its_counters_and_loses_its_gauges() -> None:
    site = Site()
    site.publish(topics.DEVICE_STATE, online(), device="gw-a")
    site.standing("gw-a", "online")
    site.publish(topics.DEVICE_HEARTBEAT, heartbeat(memory_bytes=5000), device="gw-a")
    site.summary("gw-a", classify=counted(9))
    assert site.samples("s2m3_memory_budget_bytes") == {("gw-a",): 5000}
    assert site.samples("s2m3_device_up") == {("gw-a",): 1}
    site.publish(topics.DEVICE_STATE, offline(), device="gw-a")
    assert site.samples("s2m3_device_up") == {("gw-a",): 0}
    assert site.samples("s2m3_memory_budget_bytes") == site.samples("s2m3_module_memory_bytes") == {}
    assert sum(site.samples("s2m3_requests_total").values()) == 9


def test_latency_buckets_are_cumulative_up_to_the_last_one() -> None:
    site = Site()
    site.summary("gw-a", classify=counted(9))
    buckets = site.samples("s2m3_request_duration_seconds_bucket")
    by_bound = {labels[2]: number for labels, number in buckets.items()}
    assert (by_bound["0.05"], by_bound["0.1"], by_bound["10.0"], by_bound["30.0"], by_bound["+Inf"]) == (0, 8, 8, 9, 9)


def test_memory_of_modules_has_their_role_and_the_queue_is_the_heartbeats() -> None:
    site = Site()
    site.standing("gw-a", "online")
    site.summary("gw-a")
    assert site.samples("s2m3_module_memory_bytes") == {("gw-a", "encoder", "unassigned"): 1234}
    site.publish(topics.DEVICE_ASSIGNMENT, assignment(ENCODER), device="gw-a")
    assert site.samples("s2m3_module_memory_bytes") == {("gw-a", "encoder", "active"): 1234}
    held = HeldModule(module="encoder", state="ready", queue=7)
    sent = heartbeat(modules={ENCODER.key: held, "other-key": held}, dropped={"too_large": 2})
    site.publish(topics.DEVICE_HEARTBEAT, sent, device="gw-a")
    assert site.samples("s2m3_module_queue_length") == {("gw-a", "encoder"): 14}
    assert site.samples("s2m3_messages_dropped_total") == {("gw-a", "too_large"): 2}


def test_kept_outputs_are_counted_where_a_device_keeps_any() -> None:
    site = Site()
    cache = {"limit_bytes": 1000, "used_bytes": 300, "outputs": 3, "hits": 7, "computed": 5}
    for device, use in (("gw-a", cache), ("gw-b", None)):
        site.publish(topics.DEVICE_STATE, online(), device=device)
        site.standing(device, "online")
        site.publish(topics.DEVICE_HEARTBEAT, heartbeat(output_cache=use), device=device)
    assert site.samples("s2m3_output_cache_nodes_total") == {("gw-a", "computed"): 5, ("gw-a", "kept"): 7}
    assert site.samples("s2m3_output_cache_used_bytes") == {("gw-a",): 300}


def test_a_death_is_timed_from_the_last_heartbeat_and_by_what_told_it() -> None:
    site = Site()
    for device in ("gw-a", "gw-b", "gw-c"):
        site.publish(topics.DEVICE_STATE, online(), device=device)
        site.publish(topics.DEVICE_HEARTBEAT, heartbeat(), 10.0, device=device)
    site.publish(topics.DEVICE_STATE, offline(), 10.4, device="gw-a")
    site.event("device_dead", 10.5, device="gw-a")
    site.event("moved", 10.6, module="encoder", device="gw-c", origin="gw-a")
    site.event("device_dead", 13.5, device="gw-b")
    site.event("took_over", 13.6, module="encoder", device="gw-c", origin="gw-b")
    site.standing("gw-c", "draining")
    site.event("moved", module="encoder", device="gw-b", origin="gw-c")
    site.event("device_online", device="gw-a")
    site.event("moved", module="encoder", device="gw-b", origin="gw-a")
    assert site.samples("s2m3_detection_duration_seconds_sum") == {("will",): 0.5, ("heartbeat",): 3.5}
    assert site.samples("s2m3_replacements_total") == {
        ("will",): 1,
        ("heartbeat",): 1,
        ("drain",): 1,
        ("other",): 1,
    }
    assert site.samples("s2m3_events_total")["moved",] == 3


def test_only_the_orchestrator_says_what_moved() -> None:
    site = Site()
    told = SystemEvent.model_validate({"type": "moved", "at": 1.0, "device": "gw-a", "origin": "gw-b"})
    site.publish(topics.DEVICE_EVENTS, told, device="gw-a")
    site.publish(topics.DEVICE_EVENTS, SystemEvent(type="device_dead", at=1.0, device="gw-a"), device="gw-a")
    assert site.samples("s2m3_replacements_total") == site.samples("s2m3_detection_duration_seconds_count") == {}


def trace(task: str = "classify", node: str = "encoder") -> Trace:
    way = {"transfer_s": 0.01, "queue_s": 0.0, "compute_s": 3.0, "return_s": 99.0, "bytes": 5, "attempts": 1}
    nodes = {node: TraceNode.model_validate({"device": "gw-a", **way})}
    return Trace(request="0" * 32, task=task, outcome="answered", total_s=4.0, nodes=nodes)


def test_traces_fill_the_nodes_histograms() -> None:
    site = Site()
    for _ in range(2):
        site.publish(topics.DEVICE_TRACES, trace(), device="gw-a", request="0" * 32)
    sums = site.samples("s2m3_node_duration_seconds_sum")
    assert sums["classify", "encoder", "compute"] == 6.0
    buckets = site.samples("s2m3_node_duration_seconds_bucket")
    assert buckets["classify", "encoder", "return", "10.0"] == 0
    assert buckets["classify", "encoder", "return", "+Inf"] == 2


def test_what_others_invent_is_bounded(monkeypatch: Any) -> None:
    site = Site()
    monkeypatch.setattr(pictures, "MAX_NODES", 3)
    for number in range(9):
        site.publish(topics.DEVICE_TRACES, trace(node=f"n-{number}"), device="gw-a", request="0" * 32)
        site.event(f"invented_{'abcdefghi'[number]}")
    assert len(site.picture.nodes) == 12
    assert site.samples("s2m3_exporter_messages_left_out_total") == {(): 6}
    assert site.samples("s2m3_events_total") == {("other",): 9}
    site.standing("gw-a", "online")
    sent = heartbeat(dropped={f"reason-{number:03}": 1 for number in range(99)})
    site.publish(topics.DEVICE_HEARTBEAT, sent, device="gw-a")
    dropped = site.samples("s2m3_messages_dropped_total")
    assert (len(dropped), sum(dropped.values())) == (17, 99)
    site.summary("gw-a", classify=TaskCounters(requests=5, answered=0, errors={"invented": 2, "bad_input": 3}))
    outcomes = {labels[2]: number for labels, number in site.samples("s2m3_requests_total").items()}
    assert outcomes == {"answered": 0, "bad_input": 3, "other": 2}
    names = {f"Invented {number}": {"no_task": 1} for number in range(60)}
    site.publish(topics.ORCHESTRATOR_UNANSWERED, UnansweredRequests.model_validate({"unanswerable": names}))
    assert site.samples("s2m3_unanswerable_requests_total") == {("", "no_task"): 60}
    monkeypatch.setattr(message_room, "MESSAGES_BYTES", site.picture._room.kept_bytes + 10)
    site.standing("gw-b", "online")
    assert site.picture.devices == ["gw-a"]
    site.publish(topics.DEVICE_HEARTBEAT, b"x", device="gw-a")  # smaller than before: it has room
    assert site.samples("s2m3_messages_dropped_total") == {}


def test_a_message_that_cant_be_read_is_counted() -> None:
    site = Site()
    site.publish(topics.DEVICE_SUMMARY, b"{}", device="gw-a")
    site.publish(topics.DEVICE_SUMMARY, b"\xff", device="gw-a")
    assert site.samples("s2m3_exporter_messages_refused_total") == {("devices/{device}/summary",): 2}


def test_without_the_broker_nothing_old_is_shown_and_counts_stay() -> None:
    site = Site()
    site.publish(topics.ORCHESTRATOR_STATE, leader(1))
    site.publish(topics.TASK_STATUS, TaskStatus(task="classify", revision="0123456789ab"), task="classify")
    site.event("moved")
    assert site.samples("s2m3_leader") == {(): 1}
    assert site.samples("s2m3_task_served") == {("classify",): 1}
    site.picture.forget_states()
    assert site.samples("s2m3_broker_connected", connected=False) == {(): 0}
    assert site.samples("s2m3_leader", connected=False) == site.samples("s2m3_task_served", connected=False) == {}
    assert site.samples("s2m3_events_total", connected=False) == {("moved",): 1}
    assert site.samples("s2m3_build_info", connected=False) == {("exporter", "1.2.3"): 1}


def test_at_a_core_the_site_is_shown_while_its_bridge_is_up() -> None:
    site = Site(at_core=True)
    site.publish(topics.ORCHESTRATOR_STATE, leader(1))
    site.publish(topics.DEVICE_STATE, online(), device="gw-a")
    site.summary("gw-a", classify=counted(9))
    site.publish(topics.BRIDGE_STATE, topics.IS_UP)
    assert site.samples("s2m3_bridge_up") == site.samples("s2m3_leader") == {(): 1}
    assert site.samples("s2m3_module_memory_bytes") == {("gw-a", "encoder", "unknown"): 1234}
    assert health(site.picture, why_away=None)["status"] == "ok"
    for gone in (topics.IS_DOWN, b""):
        site.publish(topics.BRIDGE_STATE, gone)
        assert site.samples("s2m3_bridge_up") == {(): 0}
        assert site.samples("s2m3_broker_connected") == {(): 1}
        assert site.samples("s2m3_leader") == site.samples("s2m3_device_up") == {}
        assert sum(site.samples("s2m3_requests_total").values()) == 9
        assert "the site's bridge to this core is down" in str(health(site.picture, why_away=None)["reasons"])
    site.publish(topics.BRIDGE_STATE, topics.IS_UP)
    site.picture.forget_states()
    assert site.samples("s2m3_bridge_up", connected=False) == {}
    assert Site().samples("s2m3_bridge_up") == {}


def test_the_site_serves_while_an_orchestrator_leads_and_every_task_has_a_revision() -> None:
    site = Site()

    def reasons(**changed: Any) -> object:
        document = health(site.picture, **({"why_away": None} | changed))
        assert (document["status"] == "ok") == ("reasons" not in document)
        return document.get("reasons")

    assert reasons(why_away="no connection") == ["no connection"]
    assert reasons() == ["no orchestrator leads"]
    site.publish(topics.ORCHESTRATOR_STATE, leader(1))
    assert reasons() is None
    assert reasons(hidden=["the broker refused x"]) == ["the broker refused x"]
    refused = Candidate(state="refused", why="no device has 5 GiB")
    site.publish(topics.TASK_STATUS, TaskStatus(task="large", candidate=refused), task="large")
    assert reasons() == ["large is not served: no device has 5 GiB"]
    assert site.samples("s2m3_task_candidate") == {("large", "refused"): 1}
    site.publish(topics.TASK_STATUS, None, task="large")
    assert reasons() is None
    site.publish(topics.ORCHESTRATOR_STATE, leader(1, online=False))
    assert reasons() == ["no orchestrator leads"]


def test_a_device_that_the_site_forgot_is_no_sample_any_more() -> None:
    site = Site()
    site.publish(topics.DEVICE_STATE, online(), device="gw-a")
    site.publish(topics.DEVICE_HEARTBEAT, heartbeat(), device="gw-a")
    site.standing("gw-a", "dead")
    site.event("device_dead", device="gw-a")
    before = site.samples("s2m3_device_up")
    for topic in topics.OF_A_DEVICE:
        if topic is not topics.DEVICE_DRAIN:
            site.publish(topic, None, device="gw-a")
    assert before
    assert not site.samples("s2m3_device_up")
    assert not site.picture.heartbeats
    assert not site.picture._room.kept_bytes
