"""``deploy``, ``rollback`` and ``undeploy`` right after other orders, and beside those of another operator."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from pydantic import BaseModel

from broker.protocol.codec import encode
from broker.protocol.reports import Candidate, TaskStatus
from broker.protocol.specs import TaskSpec
from broker.protocol.topics import ORCHESTRATOR_STATE, TASK_REVISION, TASK_ROUTE, TASK_SPEC, TASK_STATUS
from broker.transport.connection import Connection
from broker.transport.port import Acknowledged, Delivery, Outgoing
from s2m3.cli import broker_check, deploy, rollback, undeploy
from s2m3.cli import status as status_command
from s2m3.cli.main import main
from s2m3.testbed import observer
from s2m3.testbed.observer import Observer
from tests.builders import chain, encoder_route, leader, module

FIRST, SECOND, THIRD = SPECS = [chain("t", module("encoder"), weight=weight) for weight in (1, 2, 3)]
AT = {topic: topic.at("s2m3/v1", task="t") for topic in (TASK_SPEC, TASK_STATUS, TASK_ROUTE)}
SPEC, STATUS, ROUTE = AT.values()
REVISIONS = [(TASK_REVISION.at("s2m3/v1", task="t", revision=each.revision), each) for each in SPECS]
Said = tuple[str, BaseModel | None]


class Broker:
    """A transport to a broker that knows one task; ``orders`` are what a command published."""

    def __init__(self, inbox: Callable[[Any], None]) -> None:
        self._inbox = inbox
        self.spec: list[Said] = []  # comes when the task's spec is subscribed
        self.revisions: list[Said] = list(REVISIONS)  # come when revisions are subscribed
        self.then: list[Said] = []  # comes after an order
        self.orders: list[Outgoing] = []
        self.seen: Observer  # of which it is the transport

    def subscribe(self, *filters: str) -> None:
        specs = {SPEC, TASK_SPEC.filter("s2m3/v1")}
        self.say(*(self.spec if specs & set(filters) else self.revisions if "/revisions/" in filters[0] else []))

    def publish(self, message: Outgoing) -> None:
        self.orders.append(message)
        self._inbox(Acknowledged(message.topic, message.token))
        self._inbox(Delivery(message.topic, message.payload))
        self.say(*self.then)

    def say(self, *messages: Said) -> None:
        for topic, message in messages:
            self._inbox(Delivery(topic, encode(message) if message else b""))

    def start(self) -> None:
        """It is there."""


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    made: list[Broker] = []

    def connect(*_: object, inbox: Callable[[Any], None], **__: object) -> Broker:
        made.append(Broker(inbox))
        return made[-1]

    monkeypatch.setattr(observer, "connect", connect)
    seen = Observer(Connection("nowhere"))
    made[0].seen = seen
    monkeypatch.setattr(broker_check, "Observer", lambda _: nullcontext(seen))

    @contextmanager
    def connected(_: object, **__: object) -> Iterator[Observer]:
        yield seen

    for command in (deploy, rollback, undeploy, status_command):
        monkeypatch.setattr(command, "connected", connected)
    for name in ("KNOWN_S", "DEVICE_S", "LEADER_S"):
        monkeypatch.setattr(deploy, name, 0.01)
    monkeypatch.setattr(undeploy, "KNOWN_S", 0.01)
    monkeypatch.setattr(status_command, "HEARTBEATS_S", 0.01)
    monkeypatch.setattr(broker_check, "KNOWN_S", 0.01)
    monkeypatch.setattr(deploy, "passes", lambda *_: None)
    return made[0]


def leads(*, online: bool = True) -> Said:
    return ORCHESTRATOR_STATE.at("s2m3/v1"), leader(1, online=online)


def status(*newest_first: TaskSpec) -> Said:
    names = [spec.revision for spec in newest_first]
    return STATUS, TaskStatus(task="t", revision=names[0], revisions=tuple(names))


def route(spec: TaskSpec) -> Said:
    return ROUTE, encoder_route("t", revision=spec.revision)


def test_a_rollback_right_after_a_deploy_goes_back_to_the_one_before(broker: Broker) -> None:
    broker.say(leads(), status(SECOND, FIRST), route(THIRD))  # the status comes up to a second later
    broker.spec = [(SPEC, THIRD), status(THIRD, SECOND, FIRST)]
    main(["rollback", "t", "--timeout", "0.01"])
    assert broker.orders[0].payload == encode(SECOND)


@pytest.mark.parametrize("options", [[], ["--replace"]])
def test_a_rollback_ends_the_served_revision_first_where_it_is_told_to(broker: Broker, options: list[str]) -> None:
    broker.say(leads(), status(THIRD, SECOND, FIRST), route(THIRD))
    broker.spec = [(SPEC, THIRD)]
    before = SECOND.model_copy(update={"replace": not options})  # as it was deployed then
    broker.say(*((at, before if spec is SECOND else spec) for at, spec in REVISIONS))
    main(["rollback", "t", *options, "--timeout", "0.01"])
    assert broker.orders[0].payload == encode(SECOND.model_copy(update={"replace": bool(options)}))


def test_what_replaces_the_served_revision_beside_a_refused_one_must_be_named(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    known = (FIRST.revision, SECOND.revision)
    refused = Candidate(revision=FIRST.revision, state="refused", why="no memory")
    told = TaskStatus(task="t", revision=SECOND.revision, candidate=refused, revisions=known)
    broker.say(leads(), (STATUS, told), route(SECOND))
    broker.spec = [(SPEC, FIRST)]
    assert main(["rollback", "t", "--replace"]) == 2
    sentence = f"t: serves {known[1]}, and another revision waits or was refused; say which is to replace it: --to "
    assert capsys.readouterr().err == f"s2m3: {sentence}{' or '.join(known)}\n"
    main(["rollback", "t", "--replace", "--to", known[0], "--timeout", "0.01"])
    assert broker.orders[0].payload == encode(FIRST.model_copy(update={"replace": True}))


def test_a_rollback_of_what_no_orchestrator_has_read_goes_back_to_the_served_one(broker: Broker) -> None:
    broker.say(leads(online=False), status(SECOND, FIRST), route(SECOND))
    broker.spec = [(SPEC, THIRD)]
    main(["rollback", "t", "--timeout", "0.01"])
    assert broker.orders[0].payload == encode(SECOND)


def test_a_task_that_no_orchestrator_has_read_is_undeployed(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    broker.spec = [(SPEC, FIRST)]
    assert main(["rollback", "t"]) == 2
    assert capsys.readouterr().err == "s2m3: t: no orchestrator has read this task yet; start one\n"
    assert main(["undeploy", "t"]) == 0
    assert capsys.readouterr().out == "t: undeployed\n"
    assert [(order.topic, order.payload) for order in broker.orders] == [(SPEC, b"")]


def test_status_names_a_task_that_no_orchestrator_has_read(broker: Broker, capsys: pytest.CaptureFixture[str]) -> None:
    broker.spec = [(SPEC, FIRST)]
    assert main(["status"]) == 1
    assert capsys.readouterr().out.count("no orchestrator has read it") == 1
    broker.say(leads(online=False), status(FIRST), route(FIRST))
    broker.spec = [(SPEC, SECOND)]
    assert main(["status", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["unread"] == {"t": SECOND.revision}
    broker.say(status(SECOND, FIRST))
    main(["status", "--json"])
    assert json.loads(capsys.readouterr().out)["unread"] == {}


def test_a_check_of_the_broker_counts_every_deployed_task(broker: Broker) -> None:
    others = [chain(name, module("encoder")) for name in ("a", "b", "c")]
    at = [
        (topic.at("s2m3/v1", task=each.task), told)
        for each in others
        for topic, told in (
            (TASK_STATUS, TaskStatus(task=each.task, revision=each.revision, revisions=(each.revision,))),
            (TASK_ROUTE, encoder_route(each.task, revision=each.revision)),
        )
    ]
    broker.say(leads(), *at)
    broker.revisions = [(TASK_REVISION.at("s2m3/v1", task=each.task, revision=each.revision), each) for each in others]
    specs, unread = broker_check._deployed(Connection("nowhere"))
    assert ([spec.task for spec in specs], unread) == (["a", "b", "c"], None)


@pytest.mark.parametrize(
    ("newer", "sentence"),
    [(SECOND, f"{SECOND.revision} was deployed after it, by another command"), (None, "the task was undeployed after")],
)
def test_a_deploy_that_another_order_overtakes_says_so(
    broker: Broker, newer: TaskSpec | None, sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    (tmp_path / "t.json").write_text(FIRST.model_dump_json(exclude_none=True))
    broker.say(leads())
    broker.then = [(SPEC, newer), *([route(newer)] if newer else [])]
    assert main(["deploy", str(tmp_path / "t.json"), "--timeout", "600"]) == 1
    assert sentence in capsys.readouterr().out
