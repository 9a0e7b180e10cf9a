"""The page after messages: devices, tasks, failures, the verdict; and that nothing grows with time."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from broker.protocol.codec import encode
from broker.protocol.messages import Drain
from broker.protocol.reports import (
    ModuleSummary,
    Standing,
    Summary,
    SystemEvent,
    TaskCounters,
    TaskStatus,
    Trace,
    TraceNode,
)
from broker.protocol.topics import (
    BRIDGE_STATE,
    DEVICE_ASSIGNMENT,
    DEVICE_DRAIN,
    DEVICE_HEARTBEAT,
    DEVICE_STANDING,
    DEVICE_STATE,
    DEVICE_SUMMARY,
    DEVICE_TRACES,
    IS_DOWN,
    IS_UP,
    NOT_BRIDGED,
    ORCHESTRATOR_EVENTS,
    ORCHESTRATOR_STATE,
    TASK_ROUTE,
    TASK_STATUS,
    Topic,
    read,
)
from s2m3.dashboard import picture
from s2m3.dashboard.picture import Picture
from tests.builders import (
    ENCODER,
    PREFIX,
    assignment,
    encoder_route,
    heartbeat,
    leader,
    obedient,
    offline,
    online,
)


class Page:
    """A picture, and a browser that has all of it."""

    def __init__(self, *, at_core: bool = False) -> None:
        self.picture = Picture({"broker": "mqtt://127.0.0.1:1883", "prefix": PREFIX}, at_core=at_core)
        self.now = 1000.0
        self.picture.up(self.now)

    def take(self, topic: Topic, message: BaseModel | bytes | None, **ids: str) -> None:
        """Take in a message."""
        payload = message if isinstance(message, bytes) else encode(message) if message else b""
        incoming = read(PREFIX, topic.at(PREFIX, **ids), payload)
        assert incoming is not None
        self.picture.take(incoming, incoming.decode(), self.now)

    def device(self, name: str, *, holds: bool = True) -> None:
        """Take in what a healthy device says."""
        said = assignment(ENCODER)
        self.take(DEVICE_STATE, online(), device=name)
        self.take(DEVICE_ASSIGNMENT, said if holds else assignment(), device=name)
        self.take(DEVICE_HEARTBEAT, obedient(said if holds else None, 1, memory_bytes=5000), device=name)

    def event(self, kind: str, **fields: Any) -> None:
        """Take in an event of the orchestrator."""
        self.take(ORCHESTRATOR_EVENTS, SystemEvent(type=kind, at=1.0, **fields))

    def trace(self, outcome: str = "answered", total_s: float = 0.1, task: str = "t", number: int = 1) -> None:
        """Take in the trace of a request."""
        node = TraceNode(
            device="gw-b", transfer_s=0.01, queue_s=0.0, compute_s=0.05, return_s=0.01, bytes=9, attempts=1
        )
        made = Trace(request=f"{number:032x}", task=task, outcome=outcome, total_s=total_s, nodes={"encoder": node})
        self.take(DEVICE_TRACES, made, device="gw-a", request=made.request)

    @property
    def entries(self) -> dict[str, Any]:
        """Everything that the page shows."""
        return self.picture.update(None, self.now).entries

    def of(self, kind: str) -> list[str]:
        """The keys of a kind."""
        return [key for key in self.entries if key.startswith(f"{kind}/")]

    @property
    def notices(self) -> list[str]:
        """The verdict's notices."""
        return [each["text"] for each in self.entries["verdict"]["notices"]]


@pytest.fixture
def page() -> Page:
    made = Page()
    made.take(ORCHESTRATOR_STATE, leader(1))
    return made


def test_a_device_with_its_modules(page: Page) -> None:
    page.device("gw-a")
    shown = page.entries["device/gw-a"]
    assert (shown["standing"], shown["here"], shown["budget"]) == ("online", True, 5000)
    (module,) = shown["modules"]
    assert (module["name"], module["key"], module["state"], module["bytes"]) == (
        "m/encoder",
        ENCODER.key,
        "ready",
        1000,
    )
    assert page.notices == []


def test_a_module_is_loading_until_the_device_reports_it_and_leaving_when_it_isnt_assigned_any_more(page: Page) -> None:
    page.take(DEVICE_STATE, online(), device="gw-a")
    page.take(DEVICE_ASSIGNMENT, assignment(ENCODER), device="gw-a")
    assert page.entries["device/gw-a"]["modules"][0]["state"] == "loading"
    page.take(DEVICE_HEARTBEAT, obedient(assignment(ENCODER), 1), device="gw-a")
    page.take(DEVICE_ASSIGNMENT, assignment(), device="gw-a")
    assert page.entries["device/gw-a"]["modules"][0]["role"] == "leaving"


def test_a_dead_device_stays_with_its_modules_as_gone(page: Page) -> None:
    page.device("gw-a")
    page.take(DEVICE_STATE, offline(), device="gw-a")
    assert page.entries["device/gw-a"]["standing"] == "offline"
    page.take(DEVICE_ASSIGNMENT, assignment(), device="gw-a")
    page.take(DEVICE_STANDING, Standing(device="gw-a", standing="dead", since=1.0, why="its will"), device="gw-a")
    shown = page.entries["device/gw-a"]
    assert (shown["standing"], shown["here"], shown["used"]) == ("dead", False, 0)
    assert [module["state"] for module in shown["modules"]] == ["gone"]
    assert page.notices == ["gw-a is dead: its will"]
    assert page.entries["verdict"]["devices"] == [0, 1]
    page.take(DEVICE_STATE, None, device="gw-a")
    assert page.of("device") == []


def test_a_heartbeat_that_says_nothing_new_is_no_change(page: Page) -> None:
    page.device("gw-a")
    version = page.picture.update(None, page.now).version
    page.take(DEVICE_HEARTBEAT, obedient(assignment(ENCODER), 2, memory_bytes=5000), device="gw-a")
    assert page.picture.update(version, page.now).entries == {}


def test_a_drain_is_shown_until_it_is_taken_back(page: Page) -> None:
    page.device("gw-a")
    page.take(DEVICE_DRAIN, Drain(drain=True), device="gw-a")
    assert page.entries["device/gw-a"]["standing"] == "draining"
    page.take(DEVICE_DRAIN, None, device="gw-a")
    assert page.entries["device/gw-a"]["standing"] == "online"


def test_a_task_and_why_it_isnt_served(page: Page) -> None:
    page.take(TASK_ROUTE, encoder_route("t", key=ENCODER.key), task="t")
    assert page.entries["task/t"]["state"] == "served"
    assert page.entries["task/t"]["inputs"] == {"text": {"kind": "text", "optional": False}}
    page.take(TASK_ROUTE, encoder_route("t", (), key=ENCODER.key), task="t")
    assert page.notices == ["t is loading: m/x is not ready yet"]
    page.take(TASK_ROUTE, encoder_route("t", unavailable="no memory"), task="t")
    refused = {"state": "refused", "revision": None, "why": "it has a cycle"}
    page.take(TASK_STATUS, TaskStatus.model_validate({"task": "t", "candidate": refused}), task="t")
    assert page.notices == ["t is unavailable: no memory", "a new revision of t is refused: it has a cycle"]
    page.take(TASK_ROUTE, None, task="t")
    assert page.of("task") == []


def test_memory_that_sharing_saves_and_the_last_requests(page: Page) -> None:
    page.device("gw-a")
    for task in ("one", "two"):
        page.take(TASK_ROUTE, encoder_route(task, key=ENCODER.key), task=task)
    for number in range(20):
        page.trace(total_s=float(number + 1), number=number)
    page.trace("deadline_exceeded", 60.0)
    counted = TaskCounters(requests=5, answered=3, errors={"overloaded": 2})
    summary = Summary(session=1, at=1.0, version="1", last_minute={"one": counted})
    page.take(DEVICE_SUMMARY, summary, device="gw-a")
    page.take(DEVICE_HEARTBEAT, heartbeat(9), device="gw-a")
    verdict = page.entries["verdict"]
    assert (verdict["shared_bytes"], verdict["unshared_bytes"]) == (1000, 2000)
    assert (verdict["requests"], verdict["failed"], verdict["p95_s"]) == (21, 1, 19.0)
    assert (verdict["minute"], verdict["minute_failed"]) == (5, 2)


def test_a_failure_is_one_bracket(page: Page) -> None:
    page.take(TASK_ROUTE, encoder_route("t", ("gw-a", "gw-b")), task="t")
    page.trace()
    page.now = 1001.0
    page.event("device_dead", device="gw-a", why="its will")
    page.now = 1001.5
    page.trace()
    page.event("took_over", device="gw-b", module="m/x", origin="gw-a", why="took over from gw-a, which is gone")
    page.now = 1002.0
    page.trace("overloaded")
    page.trace(task="another")
    assert page.entries["failure/000000001"]["answer_at"] is None
    page.trace()
    page.now = 1003.0
    page.trace()
    shown = page.entries["failure/000000001"]
    assert (shown["at"], shown["takeover_at"], shown["answer_at"], shown["answer"]) == (1001.0, 1001.5, 1002.0, "t")
    assert shown["modules"] == [{"module": "m/x", "to": "gw-b"}]
    assert page.entries["event/000000002"]["origin"] == "gw-a"
    assert page.entries["verdict"]["failure_at"] == 1001.0


def test_at_a_core_a_device_has_the_modules_of_its_summary_and_the_bridge_is_told() -> None:
    page = Page(at_core=True)
    assert page.notices == [NOT_BRIDGED]
    page.take(BRIDGE_STATE, IS_UP)
    page.take(ORCHESTRATOR_STATE, leader(1))
    page.take(DEVICE_STATE, online(), device="gw-a")
    held = {ENCODER.key: ModuleSummary(module="m/encoder", state="ready", memory_bytes=1234)}
    page.take(DEVICE_SUMMARY, Summary(session=1, at=1.0, version="1", modules=held), device="gw-a")
    shown = page.entries["device/gw-a"]
    assert (shown["used"], shown["version"]) == (1234, "1")
    (module,) = shown["modules"]
    assert (module["name"], module["state"], module["role"], module["bytes"]) == ("m/encoder", "ready", "", 1234)
    assert page.notices == []
    page.take(BRIDGE_STATE, IS_DOWN)
    assert page.notices == ["the site's bridge is down: what is shown is from before"]
    assert page.entries["bridge"] == {"up": False, "why": page.notices[0]}
    page.take(BRIDGE_STATE, IS_UP)
    page.picture.down("the broker went away")
    assert page.entries["bridge"] == {"up": False, "why": NOT_BRIDGED}


def test_without_a_leader_the_first_notice_says_so() -> None:
    page = Page()
    assert page.notices == ["no orchestrator leads: nothing is placed or moved until one does"]


def test_requests_events_failures_and_devices_are_bounded(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MOST_DEVICES", 3)
    for number in range(picture.MOST_EVENTS + 5):
        page.trace(number=number)
        page.event("device_dead", device="gw-a")
        page.take(DEVICE_STATE, online(), device=f"gw-{number}")
    assert len(page.of("request")) == picture.MOST_REQUESTS
    assert len(page.of("event")) == picture.MOST_EVENTS
    assert len(page.of("failure")) == 20
    assert len(page.of("device")) == 3
    assert any("this site has" in text for text in page.notices)


def test_after_a_reconnection_what_nobody_named_again_goes_away(page: Page) -> None:
    for name in ("gw-a", "gw-b"):
        page.device(name)
    page.take(TASK_ROUTE, encoder_route("t"), task="t")
    page.picture.down("the broker went away")
    assert page.entries["link"] == {"up": False, "why": "the broker went away"}
    assert page.of("device") == ["device/gw-a", "device/gw-b"]
    page.picture.up(page.now)
    page.take(DEVICE_STATE, online(), device="gw-b")
    assert len(page.of("device")) == 2
    page.now += picture.SETTLE_S
    assert page.of("device") == ["device/gw-b"]
    assert page.of("task") == []


def test_a_topic_that_the_account_may_not_read_is_told(page: Page) -> None:
    page.picture.deny("s2m3/v1/devices/+/traces/+", "not authorized")
    page.picture.up(page.now)  # the broker answers subscriptions first
    assert page.entries["denied"] == {"s2m3/v1/devices/+/traces/+": "not authorized"}
    page.picture.down("the broker went away")
    assert "denied" not in page.entries
