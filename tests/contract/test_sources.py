"""The process that runs sources, over the in-memory twin: messages of sensors in, requests and retained answers out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.protocol.codec import decode, decode_request, encode
from broker.protocol.messages import ErrorBody, Result
from broker.protocol.reports import Standing, Summary
from broker.protocol.sources import SourceAnswer, SourceSpec, SourcesRunning, SourcesSpare, SourcesState
from broker.protocol.specs import InputSpec
from broker.protocol.topics import (
    CLIENT_REQUESTS,
    DEVICE_STANDING,
    DEVICE_SUMMARY,
    RESULTS,
    SOURCE_ANSWER,
    SOURCE_SPEC,
    SOURCES_RUNNING,
    SOURCES_SPARE,
    SOURCES_STATE,
    TASK_ROUTE,
    requests_filter,
)
from broker.transport.connection import Connection
from broker.transport.memory import MemoryBroker, MemoryTransport
from broker.transport.port import Delivery, LinkEvent, Outgoing
from s2m3.sources.files import Configuration, read_files
from s2m3.sources.service import Sources
from tests.builders import able, route, route_node
from tests.patience import until
from tests.threads import running

PREFIX = "s2m3/v1"
JPEG = b"\xff\xd8\xff\xe0 a picture "
INPUTS = {"picture": InputSpec(kind="image", bytes=10), "text": InputSpec(kind="text", bytes=10)}
STATE, SPARE, RUNNING = (topic.at(PREFIX) for topic in (SOURCES_STATE, SOURCES_SPARE, SOURCES_RUNNING))


class Site:
    """A site that is one client: a front door whose answers a test may hold back, and everybody else."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.requests: list[tuple[str, dict[str, bytes]]] = []
        self.seen: list[Delivery] = []
        self.holds = False  # it answers no requests
        self._held: list[Outgoing] = []
        self.transport = MemoryTransport(broker, client_id="site", inbox=self._inbox)
        self.transport.subscribe(requests_filter(PREFIX), f"{PREFIX}/sources/#", "home/#", "homeassistant/#")
        self.transport.start()

    def serve(self, task: str = "classify", inputs: dict[str, InputSpec] | None = None) -> None:
        nodes = {"node": route_node("m", ("picture",), able("gw-a"))}
        told = route(task, nodes, inputs=inputs or {"picture": INPUTS["picture"]})
        self.publish(TASK_ROUTE.at(PREFIX, task=task), encode(told), retain=True)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.transport.publish(Outgoing(topic, payload, retain=retain))

    def spec(self, name: str, **fields: Any) -> None:
        told = json.dumps({"source": name, "task": "classify"} | fields).encode() if fields else b""
        self.publish(SOURCE_SPEC.at(PREFIX, source=name), told, retain=True)

    def release(self) -> None:
        self.holds = False
        while self._held:
            self.transport.publish(self._held.pop(0))

    def answer(self, source: str) -> SourceAnswer | None:
        kept = self.broker.retained.get(SOURCE_ANSWER.at(PREFIX, source=source))
        return decode(SourceAnswer, kept.payload) if kept else None

    def label(self, source: str) -> str | None:
        answer = self.answer(source)
        return answer.label if answer else None

    def state(self) -> SourcesState | None:
        kept = self.broker.retained.get(STATE)
        return decode(SourcesState, kept.payload) if kept else None

    def running(self) -> dict[str, tuple[str, str]]:
        """The sources that run, as the process says: what each reads and asks."""
        kept = self.broker.retained.get(RUNNING)
        told = decode(SourcesRunning, kept.payload).sources if kept else {}
        return {name: (each.subscribe, each.task) for name, each in told.items()}

    def spare_waits(self) -> bool:
        kept = self.broker.retained.get(SPARE)
        return kept is not None and decode(SourcesSpare, kept.payload).online

    def runs(self) -> bool:
        state = self.state()
        return state is not None and state.online

    def _inbox(self, event: LinkEvent) -> None:
        if not isinstance(event, Delivery):
            return
        ids = CLIENT_REQUESTS.match(PREFIX, event.topic)
        if ids is None:
            self.seen.append(event)
            return
        expected = {"picture": INPUTS["picture"]} if ids["task"] == "classify" else INPUTS
        inputs = decode_request(event.payload, event.content_type or "", expected)
        data = {name: raw.data for name, raw in inputs.items()}
        self.requests.append((ids["task"], data))
        label = data["picture"].removeprefix(JPEG).decode()
        result = Result(request="r", task=ids["task"], answer={"label": label, "score": 0.5})
        if label.startswith("overloaded"):
            error = ErrorBody.model_validate({"code": "overloaded", "message": "too many", "retry_after_s": 0.0})
            result = Result(request="r", task=ids["task"], error=error)
        topic = RESULTS.at(PREFIX, client=ids["client"], request=ids["request"])
        self._held.append(Outgoing(topic, encode(result), correlation=event.correlation))
        if not self.holds:
            self.release()


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def site(broker: MemoryBroker) -> Site:
    made = Site(broker)
    made.serve()
    return made


Start = Callable[..., Sources]


@pytest.fixture
def start(site: Site) -> Iterator[Start]:
    """Starts processes with these sources, and waits until the site's sources run."""
    with ExitStack() as stack, capture_logs() as lines:

        def make(
            *specs: dict[str, Any], name: str = "sources", homeassistant: str | None = None, wait: bool = True
        ) -> Sources:
            read = [SourceSpec.model_validate({"task": "classify", "min_interval_s": 0} | spec) for spec in specs]
            configuration = Configuration({spec.source: spec for spec in read}, homeassistant)
            connection = Connection("nowhere", client_id=name)
            made = Sources(connection, configuration, make_transport=site.broker.connect)
            stack.enter_context(running(made))
            until(lambda: not wait or (made.leads and site.runs()))
            return made

        yield make
    assert not [line for line in lines if line.get("exc_info")], lines


DOOR = {"source": "door", "subscribe": "cams/door", "publish": "home/door/who"}


def test_a_message_becomes_a_request_and_its_answer_is_kept_at_both_topics(site: Site, start: Start) -> None:
    start(DOOR)
    site.publish("cams/door", JPEG + b"cat")
    until(lambda: site.label("door") == "cat")
    answer = site.answer("door")
    assert answer is not None
    assert (answer.score, answer.task, answer.topic, answer.error) == (0.5, "classify", "cams/door", None)
    assert answer.at > 1e9
    until(lambda: "home/door/who" in site.broker.retained)
    assert decode(SourceAnswer, site.broker.retained["home/door/who"].payload) == answer
    assert site.requests == [("classify", {"picture": JPEG + b"cat"})]


def test_the_input_that_isnt_constant_has_its_name_from_the_tasks_route(site: Site, start: Start) -> None:
    site.serve("zero-shot", INPUTS)
    start(DOOR | {"task": "zero-shot", "inputs": {"text": ["a cat", "a dog"]}})
    site.publish("cams/door", JPEG + b"cat")
    until(lambda: site.label("door") == "cat")
    assert site.requests == [("zero-shot", {"picture": JPEG + b"cat", "text": b"a cat\na dog"})]


def test_while_a_request_is_under_way_the_newest_message_waits(site: Site, start: Start) -> None:
    start({"source": "cams", "subscribe": "cams/+/jpeg", "publish": "home/{1}/seen"})
    site.holds = True
    for payload in (b"1", b"2", b"3", b"4"):
        site.publish("cams/door/jpeg", JPEG + payload)
    site.publish("cams/yard/jpeg", JPEG + b"other")
    until(lambda: len(site.requests) == 2)
    site.release()
    until(lambda: "home/door/seen" in site.broker.retained and len(site.requests) == 3)
    until(lambda: decode(SourceAnswer, site.broker.retained["home/door/seen"].payload).label == "4")
    until(lambda: "home/yard/seen" in site.broker.retained)
    told = decode(SourceAnswer, site.broker.retained["home/door/seen"].payload)
    assert (told.skipped, told.captures) == (2, ("door",))
    assert decode(SourceAnswer, site.broker.retained["home/yard/seen"].payload).skipped == 0
    assert [data["picture"].removeprefix(JPEG) for _, data in site.requests] == [b"1", b"other", b"4"]


def test_what_cant_be_read_and_a_requests_error_are_told_and_the_next_message_is_taken(
    site: Site, start: Start
) -> None:
    start(DOOR | {"payload": {"json": {"picture": "$.picture"}}})
    site.publish("cams/door", b'{"image": ""}')
    until(lambda: (answer := site.answer("door")) is not None and answer.error is not None)
    answer = site.answer("door")
    assert answer is not None
    assert answer.error is not None
    assert (answer.error.code, answer.label) == ("bad_input", None)
    assert answer.error.message == "payload.json.picture ($.picture): the message has nothing at $.picture"
    start_ = DOOR | {"source": "raw", "subscribe": "cams/raw", "publish": None}
    site.spec("raw", **{key: value for key, value in start_.items() if key != "source" and value})
    until(lambda: any("cams/raw" in each.filters for each in site.broker.connected.values()))
    site.publish("cams/raw", JPEG + b"overloaded")
    until(lambda: (told := site.answer("raw")) is not None and told.error is not None)
    site.publish("cams/raw", JPEG + b"cat")
    until(lambda: site.label("raw") == "cat")


@pytest.mark.parametrize("retained", ["skip", "take"])
def test_what_is_retained_counts_at_a_connection_only_if_the_source_takes_it(
    site: Site, start: Start, retained: str
) -> None:
    site.publish("cams/door", JPEG + b"old", retain=True)
    start(DOOR | {"retained": retained})
    if retained == "take":
        until(lambda: site.label("door") == "old")
    site.publish("cams/door", JPEG + b"new", retain=True)
    until(lambda: site.label("door") == "new")
    before = len(site.requests)
    assert before == (2 if retained == "take" else 1)
    site.broker.restart(keep_retained=True)
    site.publish("cams/door", JPEG + b"newer")
    until(lambda: site.label("door") == "newer")
    taken = [data["picture"].removeprefix(JPEG) for _, data in site.requests[before:]]
    assert taken[-1] == b"newer"
    assert retained == "take" or taken == [b"newer"]


def test_an_empty_message_clears_what_was_retained_and_asks_nothing(site: Site, start: Start) -> None:
    start(DOOR)
    site.publish("cams/door", JPEG + b"cat", retain=True)
    until(lambda: site.label("door") == "cat")
    site.publish("cams/door", b"", retain=True)
    site.publish("cams/door", JPEG + b"dog")
    until(lambda: site.label("door") == "dog")
    assert len(site.requests) == 2


def test_an_error_of_this_process_ends_the_request_and_the_next_message_is_taken(
    site: Site, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(DOOR)
    with monkeypatch.context() as patched, capture_logs():
        patched.setattr("s2m3.sources.running.inputs_of", lambda *_: 1 / 0)
        site.publish("cams/door", JPEG + b"cat")
        until(lambda: (told := site.answer("door")) is not None and told.error is not None)
    answer = site.answer("door")
    assert answer is not None
    assert answer.error is not None
    assert "this process failed: division by zero" in answer.error.message
    site.publish("cams/door", JPEG + b"dog")
    until(lambda: site.label("door") == "dog")


def test_a_retained_source_runs_is_changed_and_goes_with_its_answer(site: Site, start: Start) -> None:
    site.spec("yard", subscribe="cams/yard", min_interval_s=0)
    start()
    until(lambda: any("cams/yard" in each.filters for each in site.broker.connected.values()))
    site.publish("cams/yard", JPEG + b"cat")
    until(lambda: site.label("yard") == "cat")
    site.spec("yard", subscribe="cams/garden", min_interval_s=0)
    filters = site.broker.connected["sources"].filters
    until(lambda: "cams/garden" in filters and "cams/yard" not in filters)
    site.publish("cams/yard", JPEG + b"no")
    site.publish("cams/garden", JPEG + b"dog")
    until(lambda: site.label("yard") == "dog")
    site.spec("yard")
    until(lambda: site.answer("yard") is None)
    assert b"no" not in [data["picture"].removeprefix(JPEG) for _, data in site.requests]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"subscribe": "home/#"}, "is a loop: the source yard reads home/#, and would take home/door/who"),
        ({"subscribe": "s2m3/v1/tasks/+/route"}, "can match topics of this site"),
        ({"subscribe": "a/#/b"}, "is not an MQTT topic filter"),
        ({"subscribe": "a", "min_interval_s": "1"}, "min_interval_s"),
    ],
)
def test_a_retained_source_that_cant_run_is_told_at_its_own_topic(
    site: Site, start: Start, fields: dict[str, Any], says: str
) -> None:
    start(DOOR)
    site.spec("yard", **fields)
    until(lambda: site.answer("yard") is not None)
    answer = site.answer("yard")
    assert answer is not None
    assert answer.error is not None
    assert answer.error.code == "bad_source"
    assert says in answer.error.message
    site.publish("cams/door", JPEG + b"cat")
    until(lambda: site.label("door") == "cat")


def test_what_is_left_of_sources_that_went_while_nobody_looked_is_removed(site: Site, start: Start) -> None:
    old = SourceAnswer(source="old", at=1.0, label="cat")
    site.publish(SOURCE_ANSWER.at(PREFIX, source="old"), encode(old), retain=True)
    site.publish(
        SOURCE_ANSWER.at(PREFIX, source="door"), encode(old.model_copy(update={"source": "door"})), retain=True
    )
    start(DOOR)
    until(lambda: site.answer("old") is None)
    assert site.label("door") == "cat"


# --- the spare ---


def test_a_second_process_waits_and_takes_over_when_the_first_is_gone(site: Site, start: Start) -> None:
    start(DOOR)
    spare = start(DOOR, name="spare", wait=False)
    until(lambda: "spare" in site.broker.connected)
    assert list(site.broker.connected["spare"].filters) == [STATE, SPARE], "it reads nothing else"
    site.publish("cams/door", JPEG + b"cat")
    until(lambda: site.label("door") == "cat")
    assert len(site.requests) == 1
    assert not spare.leads
    first = site.state()
    site.broker.crash("sources")
    until(lambda: spare.leads and site.runs())
    second = site.state()
    assert first is not None
    assert second is not None
    assert second.epoch == first.epoch + 1
    until(lambda: "cams/door" in site.broker.connected["spare"].filters)
    site.publish("cams/door", JPEG + b"dog")
    until(lambda: site.label("door") == "dog")
    assert len(site.requests) == 2


def test_a_process_that_ends_says_so_and_hands_over(site: Site, start: Start) -> None:
    first = start(DOOR)
    spare = start(DOOR, name="spare", wait=False)
    until(lambda: "spare" in site.broker.connected)
    first.stop()
    until(lambda: spare.leads and site.runs())


def test_the_site_knows_which_sources_run_before_a_message_comes(site: Site, start: Start) -> None:
    start(DOOR)
    until(lambda: site.running() == {"door": ("cams/door", "classify")})
    site.spec("yard", subscribe="cams/yard")
    until(lambda: site.running().keys() == {"door", "yard"})
    site.broker.restart()  # it forgets what it retained, a source among it
    until(lambda: site.running().keys() == {"door"})


def test_a_spare_says_that_it_waits_until_it_ends_or_takes_over(site: Site, start: Start) -> None:
    start(DOOR)
    assert not site.spare_waits()
    second = start(DOOR, name="second", wait=False)
    until(site.spare_waits)
    third = start(DOOR, name="third", wait=False)
    until(lambda: "third" in site.broker.connected)
    site.broker.crash("second")  # its will may come last
    until(site.spare_waits)
    site.broker.crash("sources")
    until(lambda: third.leads and not site.spare_waits())
    assert not second.leads


def test_a_process_that_hears_of_a_later_term_becomes_the_spare(site: Site, start: Start) -> None:
    first = start(DOOR)
    state = site.state()
    assert state is not None
    later = SourcesState(epoch=state.epoch + 5, online=True, session=7)
    site.publish(STATE, encode(later), retain=True)
    until(lambda: (told := site.state()) and told.epoch == state.epoch + 6 and first.leads and site.runs())


def test_a_link_that_breaks_and_comes_back_ends_no_term_and_loses_no_answer(site: Site, start: Start) -> None:
    start(DOOR)
    before = site.state()
    site.holds = True
    site.publish("cams/door", JPEG + b"cat")
    until(lambda: len(site.requests) == 1)
    with site.broker.partitioned("sources"):
        until(lambda: not site.runs())
    until(site.runs)
    after = site.state()
    assert before is not None
    assert after is not None
    assert (after.epoch, after.session != before.session) == (before.epoch, True)
    site.release()
    until(lambda: site.label("door") == "cat")


def test_an_account_that_is_bound_to_one_client_id_is_enough(site: Site, start: Start) -> None:
    start(DOOR)
    assert site.broker.connected.keys() == {"site", "sources"}


# --- Home Assistant ---


def entities(site: Site) -> set[str]:
    return {topic.split("/")[3] for topic in site.broker.retained if topic.startswith("homeassistant/device/s2m3/")}


def test_home_assistant_is_told_of_devices_and_sources_again_when_it_starts_and_of_their_end(
    site: Site, start: Start
) -> None:
    gone = "homeassistant/device/s2m3/device_gw-old/config"
    site.publish(gone, b"{}", retain=True)
    standing = Standing(device="gw-a", standing="online", since=1.0, why="")
    site.publish(DEVICE_STANDING.at(PREFIX, device="gw-a"), encode(standing), retain=True)
    start(DOOR, homeassistant="homeassistant")
    until(lambda: entities(site) == {"device_gw-a", "source_door"})
    summary = Summary(session=1, at=1.0, version="9.9.9")
    site.publish(DEVICE_SUMMARY.at(PREFIX, device="gw-a"), encode(summary), retain=True)
    config = "homeassistant/device/s2m3/device_gw-a/config"
    until(lambda: json.loads(site.broker.retained[config].payload)["dev"].get("sw") == "9.9.9")
    site.spec("yard", subscribe="cams/yard")
    until(lambda: entities(site) == {"device_gw-a", "source_door", "source_yard"})
    site.seen.clear()
    site.publish("homeassistant/status", b"online")
    told = {"device_gw-a", "source_door", "source_yard"}
    until(lambda: {each.topic.split("/")[3] for each in site.seen if each.topic.endswith("/config")} == told)
    site.spec("yard")
    site.publish(DEVICE_STANDING.at(PREFIX, device="gw-a"), b"", retain=True)
    until(lambda: entities(site) == {"source_door"})


def test_home_assistant_is_told_nothing_unless_a_file_says_so(site: Site, start: Start) -> None:
    start(DOOR)
    assert entities(site) == set()
    assert not any("homeassistant" in name for name in site.broker.connected["sources"].filters)


def test_the_examples_run(site: Site, start: Start) -> None:
    folder = Path(__file__).parents[2] / "s2m3" / "sources" / "examples"
    read = read_files(sorted(folder.glob("*.yaml")), PREFIX)
    specs = [spec.model_dump(mode="json", exclude_none=True) for spec in read.sources.values()]
    start(*(spec | {"min_interval_s": 0} for spec in specs))
    filters = site.broker.connected["sources"].filters
    assert {spec["subscribe"] for spec in specs} <= filters.keys()
