"""The topic table: topics are written, matched and recognized by it, and invalid ids are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol import topics
from broker.protocol.errors import LocalProtocolError, RemoteProtocolError
from broker.protocol.messages import OrchestratorState
from broker.protocol.topics import (
    CLIENT_REQUESTS,
    DEVICE_ECHO,
    DEVICE_HEARTBEAT,
    DEVICE_STATE,
    ORCHESTRATOR_STATE,
    RESULTS,
    TASK_REQUESTS,
    TENSORS,
    TOPICS,
    VERSION,
    Topic,
    may_reply_to,
    prefix_of,
    read,
    share_group_filter,
)
from broker.transport.memory import matches

PREFIX = prefix_of()
LEVELS = (
    "device",
    "task",
    "client",
    "sender",
    "receiver",
    "request",
    "node",
    "revision",
    "source",
    "run",
    "part",
    "end",
)
IDS = {name: f"{name}-1" for name in LEVELS}
TABLE = [
    ("orchestrator/state", 1, True),
    ("orchestrator/heartbeat", 0, False),
    ("orchestrator/quarantine", 1, True),
    ("orchestrator/events", 1, False),
    ("orchestrator/unanswered", 1, True),
    ("tasks/{task}/spec", 1, True),
    ("tasks/{task}/route", 1, True),
    ("tasks/{task}/revisions/{revision}", 1, True),
    ("tasks/{task}/status", 1, True),
    ("devices/{device}/state", 1, True),
    ("devices/{device}/assignment", 1, True),
    ("devices/{device}/heartbeat", 0, False),
    ("devices/{device}/drain", 1, True),
    ("devices/{device}/forget", 1, False),
    ("devices/{device}/rebirth", 1, False),
    ("devices/{device}/permit", 1, False),
    ("devices/{device}/echo", 0, False),
    ("devices/{device}/standing", 1, True),
    ("devices/{device}/summary", 1, True),
    ("devices/{device}/events", 1, False),
    ("devices/{device}/traces/{request}", 0, False),
    ("tasks/{task}/requests", 1, False),
    ("tasks/{task}/requests/{client}/{request}", 1, False),
    ("tensors/{sender}/{receiver}/{request}/{node}", 1, False),
    ("clients/{client}/results/{request}", 1, False),
    ("sources/state", 1, True),
    ("sources/running", 1, True),
    ("sources/spare", 1, True),
    ("sources/{source}/spec", 1, True),
    ("sources/{source}/answer", 1, True),
    ("check/{run}/kept", 1, True),
    ("check/{run}/messages/{part}/{end}", 1, False),
    ("bridge/state", 1, True),
]
EACH = pytest.mark.parametrize("topic", TOPICS, ids=[topic.template for topic in TOPICS])


def used(topic: Topic) -> dict[str, str]:
    return {name: value for name, value in IDS.items() if f"{{{name}}}" in topic.template}


def test_the_table_is_the_contract() -> None:
    assert [(topic.template, topic.qos, topic.retain) for topic in TOPICS] == TABLE
    assert VERSION == "s2m3/v1"


@EACH
def test_a_written_topic_is_matched_and_subscribed(topic: Topic) -> None:
    for prefix in ("s2m3/v1", "plant/hall-2/s2m3/v1"):
        name = topic.at(prefix, **used(topic))
        assert topic.match(prefix, name) == used(topic)
        assert matches(topic.filter(prefix), name)
        assert matches(topic.filter(prefix, **used(topic)), name)
        assert [other for other in TOPICS if other.match(prefix, name) is not None] == [topic]


@EACH
def test_a_similar_topic_is_not_matched(topic: Topic) -> None:
    name = topic.at(VERSION, **used(topic))
    for other in (f"{name}/more", f"{name}/", name.removeprefix("s2m3/"), f"x/{name}", name.rsplit("/", 1)[0], ""):
        assert topic.match(VERSION, other) is None


@pytest.mark.parametrize("wrong", ["", "A", "-a", "a/b", "a+", "#", "+", "a\n", "ä", "a" * 64, "a b", "a\0"])
def test_an_invalid_id_is_neither_written_nor_matched(wrong: str) -> None:
    with pytest.raises(LocalProtocolError, match="use a-z, 0-9 and -, at most 63 characters"):
        DEVICE_STATE.at(VERSION, device=wrong)
    assert DEVICE_STATE.match(VERSION, f"{VERSION}/devices/{wrong}/state") is None


@pytest.mark.parametrize("level", ["ESP_1A2B", "1", "Kamera Süd", "a" * 64, "ü" * 32, "-", "$x", "a.b:c@d"])
def test_a_sensor_names_itself_and_its_request_as_it_likes(level: str) -> None:
    for topic in (CLIENT_REQUESTS, RESULTS):
        ids = IDS | {"client": level, "request": level}
        name = topic.at(VERSION, **{field: ids[field] for field in topic.fields})
        incoming = read(VERSION, name, b"")
        assert incoming is not None
        assert incoming.topic is topic
        assert (incoming.ids["client"], incoming.ids["request"]) == (level, level)


@pytest.mark.parametrize("wrong", ["", "a/b", "a+", "#", "+", "a\0", "a" * 65, "ü" * 33])
def test_a_level_that_breaks_topics_is_neither_written_nor_matched(wrong: str) -> None:
    for ids in ({"client": wrong, "request": "1"}, {"client": "c", "request": wrong}):
        with pytest.raises(LocalProtocolError, match="use 1 to 64 bytes of UTF-8 without"):
            CLIENT_REQUESTS.at(VERSION, task="pick", **ids)
        assert CLIENT_REQUESTS.match(VERSION, f"{VERSION}/tasks/pick/requests/{ids['client']}/{ids['request']}") is None


def test_a_delivered_topic_is_compared_with_at_most_one_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    """It's read for every message, thousands of times a second: the table's length must not matter."""
    tried: list[Topic] = []
    match = Topic.match

    def counted(self: Topic, prefix: str, topic: str) -> dict[str, str] | None:
        tried.append(self)
        return match(self, prefix, topic)

    monkeypatch.setattr(Topic, "match", counted)
    for topic in TOPICS:
        tried.clear()
        assert read(VERSION, topic.at(VERSION, **used(topic)), b"") is not None
        assert tried == [topic]
    for other in ("frigate/door/person", f"{VERSION}/tasks/a/other", f"{VERSION}/{'a/' * 500}", VERSION, ""):
        tried.clear()
        assert read(VERSION, other, b"") is None
        assert tried == []


@EACH
def test_a_delivered_message_is_recognized_by_its_topic(topic: Topic) -> None:
    incoming = read(VERSION, topic.at(VERSION, **used(topic)), b"bytes")
    assert incoming is not None
    assert (incoming.topic, incoming.ids, incoming.payload) == (topic, used(topic), b"bytes")
    assert read("plant/s2m3/v1", topic.at(VERSION, **used(topic)), b"bytes") is None


def test_the_table_says_how_a_message_is_decoded() -> None:
    state = read(VERSION, f"{VERSION}/orchestrator/state", b'{"epoch": 1, "online": true, "session": 2}')
    assert state is not None
    assert state.decode() == OrchestratorState(epoch=1, online=True, session=2)
    broken = read(VERSION, f"{VERSION}/orchestrator/state", b"{")
    assert broken is not None
    with pytest.raises(RemoteProtocolError, match="OrchestratorState: "):
        broken.decode()


def test_an_empty_payload_clears_a_retained_topic_and_breaks_the_contract_elsewhere() -> None:
    cleared = read(VERSION, ORCHESTRATOR_STATE.at(VERSION), b"")
    assert cleared is not None
    assert cleared.decode() is None
    echo = read(VERSION, DEVICE_ECHO.at(VERSION, device="a"), b"")
    assert echo is not None
    assert echo.decode() is None, "it has no message"
    heartbeat = read(VERSION, DEVICE_HEARTBEAT.at(VERSION, device="a"), b"")
    assert heartbeat is not None
    with pytest.raises(RemoteProtocolError, match="Heartbeat: "):
        heartbeat.decode()


def test_a_filter_matches_any_id_that_is_not_given() -> None:
    assert DEVICE_HEARTBEAT.filter(VERSION) == "s2m3/v1/devices/+/heartbeat"
    assert TENSORS.filter(VERSION, receiver="gw-a") == "s2m3/v1/tensors/+/gw-a/+/+"


@pytest.mark.parametrize(
    ("site", "prefix"),
    [(None, "s2m3/v1"), ("", "s2m3/v1"), ("plant", "plant/s2m3/v1"), ("/plant/hall/", "plant/hall/s2m3/v1")],
)
def test_a_sites_prefix_stands_in_front(site: str | None, prefix: str) -> None:
    assert prefix_of(site) == prefix


def test_a_new_front_door_set_is_a_new_group_on_the_same_topic() -> None:
    first, second = (share_group_filter(VERSION, "pick", 3, group) for group in (1, 2))
    assert first == "$share/pick-3-1/s2m3/v1/tasks/pick/requests/#"
    assert second == "$share/pick-3-2/s2m3/v1/tasks/pick/requests/#"
    for topic in (TASK_REQUESTS, CLIENT_REQUESTS):
        assert matches(first.split("/", 2)[2], topic.at(VERSION, **used(topic) | {"task": "pick"}))


@pytest.mark.parametrize(
    ("reply_to", "allowed"),
    [
        (RESULTS.at(VERSION, client="camera-1", request="r-1"), True),
        ("s2m3/v1/clients/any/where", True),
        ("s2m3/v1/clients/camera-1/results/1/2", False),
        ("s2m3/v1/clients" + "/a" * 3, True),
        ("s2m3/v1/clients" + "/a" * 4, False),
        ("s2m3/v1/clients" + "/" * 250, False),
        ("s2m3/v1/clients/tab\there", False),
        ("s2m3/v1/clients/a\x85", False),
        ("s2m3/v1/clients/\ud800", False),
        ("s2m3/v1/clients/\uffff", False),
        ("s2m3/v1/clients/Küche/results/1", True),
        ("s2m3/v1/devices/gw-a/assignment", False),
        ("s2m3/v1/clientsx/a", False),
        ("other/v1/clients/a", False),
        ("s2m3/v1/clients/+/results", False),
        ("s2m3/v1/clients/#", False),
        ("s2m3/v1/clients/a\0b", False),
        ("s2m3/v1/clients/" + "a" * 1_024, False),
        ("", False),
    ],
)
def test_an_answer_goes_below_clients_only(reply_to: str, *, allowed: bool) -> None:
    assert may_reply_to(VERSION, reply_to) is allowed


@given(st.text(max_size=40), st.sampled_from(TOPICS))
def test_any_received_topic_is_matched_or_not(name: str, topic: Topic) -> None:
    for received in (name, f"{VERSION}/{name}"):
        ids = topic.match(VERSION, received)
        assert ids is None or topic.at(VERSION, **ids) == received


@pytest.mark.parametrize(
    ("topic", "response_topic", "task", "reply_to", "reason"),
    [
        ("tasks/t/requests", f"{PREFIX}/clients/c/results/1", "t", f"{PREFIX}/clients/c/results/1", None),
        ("tasks/Zero_Shot/requests", f"{PREFIX}/clients/c/x", "Zero_Shot", f"{PREFIX}/clients/c/x", None),
        ("tasks/T/requests/ESP 1/1", None, "T", f"{PREFIX}/clients/ESP 1/results/1", None),
        ("tasks//requests/c/1", "home/x", "", f"{PREFIX}/clients/c/results/1", None),
        ("tasks/t/requests", None, "t", "", "no_response_topic"),
        ("tasks/t/requests", "home/x", "t", "home/x", "response_topic_not_allowed"),
        ("tasks/t/requests/c", f"{PREFIX}/clients/c/x", "t", "", "wrong_topic"),
        ("tasks/t/requests/", None, "t", "", "wrong_topic"),
        ("tasks/t/requests/c/1/2", None, "t", "", "wrong_topic"),
        (f"tasks/t/requests/{'c' * 65}/1", None, "t", "", "wrong_topic"),
        (f"tasks/{'t' * 300}/requests", None, "t" * 64, "", "no_response_topic"),
    ],
)
def test_a_request_is_recognized_whatever_it_calls_its_task(
    topic: str, response_topic: str | None, task: str, reply_to: str, reason: str | None
) -> None:
    assert topics.asked(PREFIX, f"{PREFIX}/{topic}", response_topic) == topics.Asked(task, reply_to, reason)


@pytest.mark.parametrize("topic", ["tasks/t/route", "tasks/t", "tasks", "devices/t/requests", "tasks/t/request"])
def test_other_topics_are_no_requests(topic: str) -> None:
    assert topics.asked(PREFIX, f"{PREFIX}/{topic}", None) is None
    assert topics.asked(PREFIX, f"other/{topic}", None) is None
