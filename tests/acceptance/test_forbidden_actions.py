"""The actions that an account can't do, on a real Mosquitto that ``s2m3 broker init`` set up; one row an action.

A row counts by its effect: nothing of it is delivered, kept or changed, as a witness sees who may do everything. And it
counts only beside its permitted twin: the same client, over the same connection, does what it may, and that arrives.
``SECURITY.md`` names these tests.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from paho.mqtt.client import topic_matches_sub

from broker.protocol.client_ids import client_id as client_id_of
from broker.servers.access import Account, Role
from tests.secured import CONTROL, Peer, SecuredSite

P = "s2m3/v1"
VICTIM_CONTROL, VICTIM_DATA = (client_id_of("devices", "gw-a", name) for name in ("control", "data"))
ACCOUNTS = (
    Account(Role.ORCHESTRATOR, "orchestrator"),
    Account(Role.OPERATOR, "operator"),
    Account(Role.DEVICE, "gw-a"),
    Account(Role.DEVICE, "gw-b", ("classify",)),
    Account(Role.SENSOR, "cam-1", ("classify",)),
    Account(Role.SENSOR, "cam-2"),
    Account(Role.OBSERVER, "grafana"),
    Account(Role.OBSERVER, "homeassistant", reads=("homeassistant/#",), writes=("homeassistant/#",)),
    Account(Role.SOURCES, "sources", reads=("frigate/#",), writes=("home/#",)),
    Account(Role.HTTP, "http"),
    Account(Role.DASHBOARD, "dashboard"),
    Account(Role.BRIDGE, "north"),
)
NORTH = f"sites/north/{P}"


class May(NamedTuple):
    """The actions of the permitted twins of an account's forbidden actions."""

    publish: str  # a topic that it may write; empty where it writes none
    read: str  # a filter that it may subscribe to
    at: str  # a topic that this filter matches


MAY = {
    "cam-1": May(
        f"{P}/tasks/classify/requests/cam-1/1", f"{P}/clients/cam-1/results/+", f"{P}/clients/cam-1/results/1"
    ),
    "gw-b": May(f"{P}/devices/gw-b/heartbeat", f"{P}/devices/gw-b/assignment", f"{P}/devices/gw-b/assignment"),
    "orchestrator": May(f"{P}/tasks/t/route", f"{P}/devices/+/heartbeat", f"{P}/devices/gw-a/heartbeat"),
    "operator": May(f"{P}/tasks/t/spec", f"{P}/devices/+/heartbeat", f"{P}/devices/gw-a/heartbeat"),
    "grafana": May("", f"{P}/devices/+/heartbeat", f"{P}/devices/gw-a/heartbeat"),
    "homeassistant": May("homeassistant/status", f"{P}/sources/+/answer", f"{P}/sources/door/answer"),
    "sources": May("home/door/who", "frigate/#", "frigate/door/person/snapshot"),
    "north": May(f"{NORTH}/devices/gw-a/state", f"{NORTH}/tasks/+/spec", f"{NORTH}/tasks/t/spec"),
    "http": May(f"{P}/tasks/vqa/requests/http/1", f"{P}/clients/http/results/+", f"{P}/clients/http/results/1"),
    "dashboard": May(f"{P}/devices/gw-a/drain", f"{P}/devices/+/heartbeat", f"{P}/devices/gw-a/heartbeat"),
}

OF_THE_ORCHESTRATOR = [
    *("orchestrator/state", "orchestrator/heartbeat", "orchestrator/events"),
    *("tasks/classify/route", "tasks/classify/status", "tasks/classify/revisions/0123456789ab"),
    *("devices/gw-a/assignment", "devices/gw-a/rebirth", "devices/gw-a/standing", "tensors/orchestrator/gw-a/r/n"),
]
SPECS = ["tasks/classify/spec", "tasks/new/spec"]
FORGETS = ["devices/gw-a/forget", "devices/gw-b/forget"]
OF_THE_OPERATOR = [*SPECS, "devices/gw-a/drain", "devices/gw-b/drain", *FORGETS]
OF_ANOTHER_DEVICE = [
    *("devices/gw-a/state", "devices/gw-a/heartbeat", "devices/gw-a/echo", "devices/gw-a/summary"),
    *("devices/gw-a/events", "devices/gw-a/traces/r", "tensors/gw-a/gw-b/r/n", "tensors/gw-a/gw-a/r/n"),
]
OF_SOURCES = ["sources/state", "sources/running", "sources/spare", "sources/door/answer"]

PUBLISH: dict[str, list[str]] = {
    "cam-1": [
        *(*OF_THE_ORCHESTRATOR, *OF_THE_OPERATOR, *OF_ANOTHER_DEVICE),
        # a device of its own name
        *("devices/cam-1/state", "devices/cam-1/heartbeat", "tensors/cam-1/gw-a/r/n"),
        # answers
        *("clients/cam-2/results/1", "clients/cam-1/results/1", "clients/cam-1/x/y"),
        # requests: of another sensor, of another task, without a name, at another depth
        *("tasks/classify/requests/cam-2/1", "tasks/vqa/requests/cam-1/1", "tasks/classify/requests"),
        *("tasks/classify/requests/cam-1", "tasks/classify/requests/cam-1/1/2"),
        *(*OF_SOURCES, "sources/door/spec", "sources/cam-1/answer", "sources/cam-1/spec"),
    ],
    "gw-b": [
        *(*OF_THE_ORCHESTRATOR, *OF_THE_OPERATOR, *OF_ANOTHER_DEVICE),
        # what others say of it
        *("devices/gw-b/assignment", "devices/gw-b/rebirth", "devices/gw-b/standing"),
        # requests, and answers at another depth
        *("tasks/classify/requests", "tasks/classify/requests/cam-1/1", "tasks/classify/requests/gw-b/1"),
        *("clients/cam-1/results", "clients/cam-1/x/y", "clients/cam-1/results/1/2"),
        *(*OF_SOURCES, "sources/door/spec"),
    ],
    "orchestrator": [
        *("devices/gw-a/heartbeat", "devices/gw-a/echo", "devices/gw-a/events", "tensors/gw-a/gw-b/r/n"),
        *("devices/gw-a/traces/r", "devices/gw-a/forget", "sources/door/spec", *OF_SOURCES),
    ],
    "operator": [*OF_THE_ORCHESTRATOR, *OF_ANOTHER_DEVICE, "clients/cam-1/results/1", *OF_SOURCES],
    "north": [*OF_THE_ORCHESTRATOR, *OF_THE_OPERATOR, *OF_ANOTHER_DEVICE, *OF_SOURCES, "sources/door/spec"],
    "homeassistant": [*OF_THE_ORCHESTRATOR, *OF_THE_OPERATOR, *OF_ANOTHER_DEVICE, *OF_SOURCES, "sources/door/spec"],
    "sources": [
        *(*OF_THE_ORCHESTRATOR, *OF_THE_OPERATOR, *OF_ANOTHER_DEVICE),
        *("sources/door/spec", "sources/sources/spec", "sources/door/answer/x"),
        *("tasks/classify/requests/cam-1/1", "tasks/classify/requests", "clients/cam-1/results/1"),
    ],
    "http": [
        *(*OF_THE_ORCHESTRATOR, *OF_THE_OPERATOR, *OF_ANOTHER_DEVICE, *OF_SOURCES, "sources/door/spec"),
        *("tasks/classify/requests/cam-1/1", "tasks/classify/requests", "clients/cam-1/results/1"),
        # a device of its own name, answers to itself, requests at another depth
        *("devices/http/state", "devices/http/heartbeat", "tensors/http/gw-a/r/n", "clients/http/results/1"),
        *("tasks/classify/requests/http", "tasks/classify/requests/http/1/2"),
    ],
    "dashboard": [
        *(*OF_THE_ORCHESTRATOR, *SPECS, *OF_ANOTHER_DEVICE, *OF_SOURCES, "sources/door/spec", "devices/gw-a/drain/x"),
        *("tasks/classify/requests/cam-1/1", "tasks/classify/requests", "clients/cam-1/results/1"),
    ],
}
EXACT = {  # topics outside the site, written as they are
    "cam-1": [
        *(
            "home/door",
            "s2m3/v2/tasks/classify/requests/cam-1/1",
            "p/s2m3/v1/tasks/classify/requests/cam-1/1",
            "$SYS/x",
        ),
    ],
    "gw-b": ["home/door", "s2m3/v2/devices/gw-b/state", "p/s2m3/v1/devices/gw-b/state", "$SYS/x"],
    "orchestrator": ["home/door", "p/s2m3/v1/tasks/t/route"],
    "operator": [
        *("home/door", "p/s2m3/v1/tasks/t/spec", f"{NORTH}/devices/gw-a/state", f"{NORTH}/orchestrator/state"),
        *(f"{NORTH}/devices/gw-a/drain", f"{NORTH}/tasks/classify/requests/operator/1", f"{NORTH}/bridge/state"),
    ],
    "north": [
        *("home/door", "sites/south/s2m3/v1/devices/gw-a/state", "sites/south/s2m3/v1/bridge/state"),
        *(f"{NORTH}/tasks/classify/spec", "sites/all/s2m3/v1/tasks/classify/spec", f"{NORTH}/devices/gw-a/drain"),
        *(f"{NORTH}/tensors/gw-a/gw-b/r/n", f"{NORTH}/tasks/classify/requests/cam-1/1"),
        *(f"{NORTH}/clients/cam-1/results/1", f"{NORTH}/devices/gw-a/heartbeat", f"{NORTH}/sources/door/answer"),
    ],
    "homeassistant": [
        *("home/door/who", "frigate/door/person/snapshot", "homeassistants/x"),
        *("sites/all/s2m3/v1/tasks/classify/spec", f"{NORTH}/tasks/classify/spec"),
    ],
    "sources": ["frigate/door/person/snapshot", "homes/x", "homeassistant/device/s2m3/source_door/config"],
    "http": ["home/door"],
    "dashboard": ["home/door"],
}

REQUESTS_READ = ["tasks/classify/requests/#", "tasks/+/requests/+/+", "tasks/classify/requests/cam-2/1"]
ANSWERS_READ = ["clients/#", "clients/+/results/+", "clients/cam-2/results/#"]
TENSORS_READ = ["tensors/#", "tensors/+/gw-a/+/+", "tensors/+/orchestrator/+/+"]
DEVICES_READ = ["devices/+/state", "devices/+/heartbeat", "devices/#", "devices/gw-a/assignment"]
TASKS_READ = ["tasks/classify/spec", "tasks/+/revisions/+", "tasks/+/status"]
REPORTS_READ = ["devices/gw-a/summary", "devices/+/traces/+", "devices/+/events", "devices/+/standing"]
SOURCES_READ = [
    "sources/#",
    "sources/+/spec",
    "sources/+/answer",
    *(f"sources/{each}" for each in ("state", "running", "spare")),
]
ALL_READ = ["#", "+/#", "+/v1/#", "$SYS/#", "$CONTROL/#", f"{P}/#"]

SUBSCRIBE: dict[str, list[str]] = {
    "cam-1": [
        *(f"{P}/{each}" for each in (*REQUESTS_READ, *ANSWERS_READ, *TENSORS_READ, *DEVICES_READ, *TASKS_READ)),
        *(f"{P}/{each}" for each in (*REPORTS_READ, "tasks/+/route", "tasks/vqa/route", "orchestrator/events")),
        *(f"{P}/{each}" for each in SOURCES_READ),
        *(*ALL_READ, f"$share/g/{P}/clients/+/results/+", f"$share/g/{P}/tasks/classify/requests/cam-1/+"),
    ],
    "gw-b": [
        *(f"{P}/{each}" for each in (*REQUESTS_READ, *ANSWERS_READ, *TENSORS_READ, *DEVICES_READ, *TASKS_READ)),
        *(f"{P}/{each}" for each in (*REPORTS_READ, *SOURCES_READ, "devices/gw-a/echo", "orchestrator/heartbeat")),
        *(*ALL_READ, f"$share/g/{P}/tensors/+/gw-a/+/+", f"$share/g/{P}/clients/+/results/+"),
        f"$share/vqa-1-1/{P}/tasks/vqa/requests/#",
        f"$share/g/{P}/tasks/+/requests/#",
    ],
    "orchestrator": [*(f"{P}/{each}" for each in (*ANSWERS_READ, "tensors/+/gw-a/+/+")), *ALL_READ],
    "operator": [
        *(f"{P}/{each}" for each in (*REQUESTS_READ, *TENSORS_READ)),
        *("#", "$CONTROL/#", f"$share/classify-1-1/{P}/tasks/classify/requests/#"),
    ],
    "north": [
        *(f"{P}/{each}" for each in (*REQUESTS_READ, *ANSWERS_READ, *TENSORS_READ, *DEVICES_READ, *TASKS_READ)),
        *("#", "$SYS/#", "$CONTROL/#", "sites/#", "sites/+/s2m3/v1/tasks/+/spec", "sites/south/s2m3/v1/tasks/+/spec"),
    ],
    "grafana": [
        *(f"{P}/{each}" for each in (*REQUESTS_READ, *ANSWERS_READ, *TENSORS_READ)),
        *("#", "$CONTROL/#", f"$share/classify-1-1/{P}/tasks/classify/requests/#"),
    ],
    "homeassistant": [
        *(f"{P}/{each}" for each in (*REQUESTS_READ, *ANSWERS_READ, *TENSORS_READ)),
        *("#", "+/#", "home/#", "frigate/#", "$CONTROL/#", f"$share/classify-1-1/{P}/tasks/classify/requests/#"),
    ],
    "sources": [
        *(f"{P}/{each}" for each in (*REQUESTS_READ, *ANSWERS_READ, *TENSORS_READ, *DEVICES_READ)),
        *(f"{P}/{each}" for each in ("devices/+/traces/+", "devices/+/events", "sources/#", "tasks/+/status")),
        *("#", "$SYS/#", "$CONTROL/#", "home/#", f"$share/g/{P}/tasks/classify/requests/#"),
    ],
    "http": [
        *(f"{P}/{each}" for each in (*REQUESTS_READ, *ANSWERS_READ, *TENSORS_READ, *DEVICES_READ)),
        *("#", "$SYS/#", "$CONTROL/#", f"$share/g/{P}/tasks/classify/requests/#"),
        *(
            f"{P}/{each}"
            for each in (*TASKS_READ, *REPORTS_READ, "tasks/classify/requests/cam-1/+", "orchestrator/events")
        ),
        *(f"$share/g/{P}/tasks/+/requests/#", f"$share/g/{P}/clients/+/results/+"),
    ],
    "dashboard": [
        *(f"{P}/{each}" for each in (*REQUESTS_READ, *ANSWERS_READ, *TENSORS_READ)),
        *("#", "$CONTROL/#", f"$share/classify-1-1/{P}/tasks/classify/requests/#"),
    ],
}
EVERYWHERE = [
    *(f"{P}/{each}" for each in (*OF_THE_ORCHESTRATOR, *OF_THE_OPERATOR, *OF_ANOTHER_DEVICE)),
    *(f"{P}/tasks/{each}" for each in ("classify/requests/cam-2/1", "classify/requests", "vqa/requests/x/1")),
    *(f"{P}/{each}" for each in ("tasks/classify/requests/cam-1/1", "tasks/vqa/route", "clients/cam-2/results/1")),
    *(f"{P}/{each}" for each in ("tensors/gw-b/gw-a/r/n", "tensors/gw-b/orchestrator/r/n")),
    *(f"{P}/{each}" for each in (*OF_SOURCES, "sources/door/spec")),
    *("home/door", "frigate/door/person/snapshot", "$CONTROL/x", "sites/south/s2m3/v1/tasks/t/spec"),
]
"""Where the witness publishes, so that each filter above would deliver something."""

CONNECT: dict[str, list[tuple[str, dict[str, Any]]]] = {
    who: [
        ("the client id of gw-a's control connection", {"client_id": VICTIM_CONTROL}),
        ("the client id of gw-a's data connection", {"client_id": VICTIM_DATA}),
        ("another client id", {"client_id": "other"}),
        ("another user name, the own password", {"user": "gw-a", "client_id": VICTIM_CONTROL}),
        ("the admin's name, the own password", {"user": "admin", "client_id": "admin"}),
        ("a wrong password", {"password": "wrong"}),
        ("an empty password", {"password": ""}),
        ("no user name", {"user": ""}),
        ("no certificate", {"certificate": False}),
    ]
    for who in ("cam-1", "gw-b")
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredSite]:
    """A secured broker, and no process of a site: each topic says what these clients say."""
    with SecuredSite(tmp_path_factory.mktemp("locked") / "site", ACCOUNTS) as running:
        running.add_witness()
        yield running


@pytest.fixture(scope="module")
def witness(site: SecuredSite) -> Iterator[Peer]:
    """It sees everything."""
    with site.witness() as connected:
        assert connected.subscribe("#") == "Granted QoS 1"
        assert connected.subscribe("$SYS/#") == "Granted QoS 1"
        yield connected


def own_connection(
    site: SecuredSite,
    who: str,
    *,
    user: str | None = None,
    password: str | None = None,
    client_id: str | None = None,
    will: tuple[str, str] | None = None,
    certificate: bool = True,
) -> Peer:
    """A connection of this account, with something about it changed."""
    own_user, own_password = site.login(who)
    login = (own_user if user is None else user, own_password if password is None else password)
    if client_id is None and who.startswith("gw-"):
        client_id = client_id_of("devices", who, "control")
    return Peer(site, who, login=login, client_id=client_id, will=will, certificate=certificate)


@pytest.fixture(scope="class")
def actors(site: SecuredSite) -> Iterator[Callable[[str], Peer]]:
    """One connection an account, kept for all rows of a class."""
    there: dict[str, Peer] = {}

    def actor(who: str) -> Peer:
        if who not in there:
            there[who] = own_connection(site, who).__enter__()
            assert there[who].refused is None
            assert there[who].subscribe(MAY[who].read) == "Granted QoS 1"
        return there[who]

    yield actor
    for each in there.values():
        each.__exit__()


def rows(table: dict[str, list[str]], prefix: str = "") -> list[Any]:
    """One parameter an action."""
    actions = ((who, what) for who, listed in table.items() for what in listed)
    return [pytest.param(who, f"{prefix}{what}", id=f"{who}-{what}") for who, what in actions]


def token() -> str:
    return uuid.uuid4().hex


class TestOverOneConnection:
    @pytest.mark.parametrize("retain", [False, True], ids=["", "retained"])
    @pytest.mark.parametrize(("who", "topic"), [*rows(PUBLISH, f"{P}/"), *rows(EXACT)])
    def test_it_cant_publish(
        self, witness: Peer, actors: Callable[[str], Peer], who: str, topic: str, *, retain: bool
    ) -> None:
        actor, forbidden, permitted = actors(who), token(), token()
        said = actor.publish(topic, forbidden, retain=retain)
        actor.publish(topic, forbidden, retain=retain, qos=0)
        assert actor.publish(MAY[who].publish, permitted) == "Success"
        witness.wait_for(permitted)  # after it, for one connection's messages are handled in turn
        assert witness.heard(forbidden) == []
        assert said == "Not authorized"
        assert witness.subscribe(topic) == "Granted QoS 1"  # which delivers what is kept
        witness.publish(f"after/{permitted}", after := token())
        witness.wait_for(after)
        assert witness.heard(forbidden) == []

    @pytest.mark.parametrize(("who", "filter_"), rows(SUBSCRIBE))
    def test_it_cant_read(self, witness: Peer, actors: Callable[[str], Peer], who: str, filter_: str) -> None:
        actor, secret, permitted = actors(who), token(), token()
        said = actor.subscribe(filter_)
        plain = filter_.split("/", 2)[2] if filter_.startswith("$share/") else filter_
        matching = [topic for topic in EVERYWHERE if topic_matches_sub(plain, topic)]
        assert matching or plain.startswith("$SYS")  # which the broker itself fills
        for topic in matching[:5]:
            witness.publish(topic, secret)
        assert witness.publish(MAY[who].at, permitted) == "Success"
        actor.wait_for(permitted)
        assert actor.heard(secret) == []
        assert not any(topic.startswith("$") for topic in actor.topics())
        assert said == "Not authorized"


@pytest.mark.parametrize(
    ("who", "given"), [pytest.param(who, given, id=f"{who}-{what}") for who in CONNECT for what, given in CONNECT[who]]
)
def test_it_cant_connect_with(site: SecuredSite, witness: Peer, who: str, given: dict[str, Any]) -> None:
    permitted = token()
    user, password = site.login("gw-a")
    data = site.login("gw-a", data=True)
    with (
        Peer(site, "gw-a", login=(user, password), client_id=VICTIM_CONTROL) as control,
        Peer(site, "gw-a", login=data, client_id=VICTIM_DATA) as victim_data,
    ):
        with own_connection(site, who, **dict(given)) as intruder:
            assert intruder.refused
        for victim in (control, victim_data):  # they are still there, and no will was published
            assert victim.publish(f"{P}/devices/gw-a/echo", permitted) in {"Success", "No matching subscribers"}
            assert not victim.lost.is_set()
    witness.wait_for(permitted, count=2)
    with own_connection(site, who) as twin:
        assert twin.refused is None
        assert twin.publish(MAY[who].publish, permitted) == "Success"
    witness.wait_for(permitted, count=3)


WILLS = ("devices/gw-a/state", "orchestrator/state", "tasks/classify/requests/cam-2/1", "tasks/classify/spec")


@pytest.mark.parametrize("topic", WILLS)
@pytest.mark.parametrize("who", ["cam-1", "gw-b"])
def test_its_will_isnt_published_elsewhere(site: SecuredSite, witness: Peer, who: str, topic: str) -> None:
    """Mosquitto 2.0 lets a client in with such a will, and publishes nothing when the connection breaks."""
    forbidden, permitted = token(), token()
    for payload, place in ((forbidden, f"{P}/{topic}"), (permitted, MAY[who].publish)):
        with own_connection(site, who, will=(place, payload)) as connected:
            if connected.refused is None:
                connected.break_off()
    witness.wait_for(permitted)
    assert set(witness.heard(permitted)) == {MAY[who].publish}
    assert witness.heard(forbidden) == []


@pytest.mark.parametrize(
    "who", ["cam-1", "gw-b", "operator", "orchestrator", "grafana", "homeassistant", "sources", "http", "dashboard"]
)
def test_it_cant_change_accounts(site: SecuredSite, who: str) -> None:
    name = f"new-{who}"
    command = {"command": "createClient", "username": name, "password": "x", "roles": [{"rolename": "operator"}]}
    with own_connection(site, who) as actor:
        assert actor.publish(CONTROL, json.dumps({"commands": [command]})) == "Not authorized"
    accounts = json.loads(site.setup.plugin_file.read_text())["clients"]
    assert name not in {each["username"] for each in accounts}
    with Peer(site, who, login=(name, "x"), client_id="x") as created:
        assert created.refused
    with Peer(site, "admin", client_id="admin") as admin:  # the twin: the admin may
        admin.subscribe(f"{CONTROL}/response")
        admin.publish(CONTROL, json.dumps({"commands": [command | {"username": f"{name}-2"}]}))
        admin.next(f"{CONTROL}/response")
    accounts = json.loads(site.setup.plugin_file.read_text())["clients"]
    assert f"{name}-2" in {each["username"] for each in accounts}


def test_a_sensor_in_a_front_doors_share_group_takes_no_request(
    site: SecuredSite,
) -> None:
    """An access list of Mosquitto grants such a subscription and hands every second request to nobody."""
    group = f"$share/classify-1-1/{P}/tasks/classify/requests/#"
    with (
        own_connection(site, "cam-1") as thief,
        own_connection(site, "gw-b") as door,
        own_connection(site, "cam-2") as other,
    ):
        thief.subscribe(group)
        assert door.subscribe(group) == "Granted QoS 1"
        asked = token()
        for number in range(20):
            other.publish(f"{P}/tasks/classify/requests/cam-2/{number}", asked)
        door.wait_for(asked, count=20)


def test_the_table_has_at_least_30_forbidden_actions_for_a_sensor_and_for_a_device() -> None:
    for who in ("cam-1", "gw-b"):
        actions = [*PUBLISH[who], *EXACT[who], *SUBSCRIBE[who], *(what for what, _ in CONNECT[who])]
        actions += [f"a will at {topic}" for topic in WILLS]
        assert len(set(actions)) == len(actions) >= 60
