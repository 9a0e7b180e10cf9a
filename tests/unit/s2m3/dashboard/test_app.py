"""The application over an in-memory broker: the page, the stream, the playground, and who may ask."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import pytest
from starlette.testclient import TestClient

from broker.protocol.codec import encode
from broker.protocol.errors import ErrorCode
from broker.transport.connection import Connection
from broker.transport.memory import MemoryBroker
from broker.transport.port import Outgoing
from s2m3.dashboard import device
from s2m3.dashboard.app import PAGE, Dashboard, application
from s2m3.dashboard.feed import Feed
from s2m3.http.server import Server
from s2m3.listening import listening
from tests.builders import heartbeat
from tests.http_site import IMAGE, TEXT, FrontDoor, failing
from tests.patience import PATIENCE_S, until

ASK = {"X-S2M3": "ask", "Content-Type": "application/json"}


class Shown:
    """A site of one front door, and its dashboard."""

    def __init__(self, *, allow_control: bool = False) -> None:
        self.broker = MemoryBroker()
        self.door = FrontDoor(self.broker.connect, Connection())
        self.door.serve("classify", {"image": IMAGE, "text": TEXT})
        self.feed = Feed(Connection(), allow_control=allow_control, make_transport=self.broker.connect)
        self.dashboard = Dashboard(self.feed)
        self.app = application(self.dashboard)
        self.http = TestClient(self.app, base_url="http://127.0.0.1:8090", raise_server_exceptions=False)
        until(self._is_complete)

    def _is_complete(self) -> bool:
        entries = self.feed.update(None).entries
        return "task/classify" in entries and entries["link"] == {"up": True, "why": ""}


@pytest.fixture
def shown() -> Iterator[Shown]:
    made = Shown()
    yield made
    made.feed.close()


@pytest.fixture
def controlled() -> Iterator[Shown]:
    """A dashboard that may give orders, and shows gw-a."""
    made = Shown(allow_control=True)
    made.door.transport.publish(Outgoing("s2m3/v1/devices/gw-a/heartbeat", encode(heartbeat()), qos=0))
    until(lambda: made.feed.knows_device("gw-a"))
    yield made
    made.feed.close()


def test_at_a_core_a_request_is_refused_at_once() -> None:
    with closing(Feed(Connection(site="sites/north"), make_transport=MemoryBroker().connect)) as feed:
        page = TestClient(application(Dashboard(feed)), base_url="http://127.0.0.1:8090")
        refused = page.post("/api/ask/classify", json={"image": "aGk="}, headers=ASK)
    assert (refused.status_code, refused.json()["error"]["message"]) == (
        403,
        "a core carries no requests: ask with the site's own broker",
    )


@pytest.fixture
def port(shown: Shown) -> Iterator[int]:
    """The port of the real server; it has ended at the end, with all streams."""
    with listening("127.0.0.1", 0) as listener:
        server = Server(shown.feed.site, shown.app)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        until(lambda: server.started)
        yield listener.getsockname()[1]
        shown.dashboard.ending = True
        server.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert shown.dashboard.browsers == 0


@pytest.fixture
def updates(port: int) -> Iterator[Iterator[Any]]:
    """The updates of a browser."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        connection.request("GET", "/api/updates")
        with connection.getresponse() as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            yield (json.loads(line[6:]) for line in iter(response.readline, b"") if line.startswith(b"data: "))


def test_a_browser_gets_everything_then_what_changes(shown: Shown, updates: Iterator[Any]) -> None:
    first = next(updates)
    assert first["reset"] is True
    assert first["entries"]["task/classify"]["state"] == "served"
    shown.door.serve("vqa", {"image": IMAGE})
    second = next(each for each in updates if "task/vqa" in each["entries"])
    assert second["reset"] is False
    assert "task/classify" not in second["entries"]


def test_a_lost_broker_is_told_and_heals(shown: Shown, updates: Iterator[Any]) -> None:
    assert next(updates)["entries"]["link"]["up"]
    client = next(name for name in shown.broker.connected if name != "gw-a")
    links = (each["entries"]["link"] for each in updates if "link" in each["entries"])
    with shown.broker.partitioned(client):
        assert next(links) == {"up": False, "why": "the connection was lost"}
    assert next(links)["up"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_message_that_cant_be_read_or_shown_is_left_out(
    shown: Shown, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    if fails:
        monkeypatch.setattr(device, "Standing", None)  # an error of this program
    for payload in (b"not JSON", b'{"device": "gw-a", "standing": "online", "since": 1.0, "why": ""}'):
        shown.door.transport.publish(Outgoing("s2m3/v1/devices/gw-a/standing", payload, retain=True))
    shown.door.serve("vqa", {"image": IMAGE})
    until(lambda: "task/vqa" in shown.feed.update(None).entries)
    assert ("device/gw-a" in shown.feed.update(None).entries) is not fails


def test_the_page_names_only_its_own_files(shown: Shown) -> None:
    for path in ("/", *(f"/{each.name}" for each in PAGE.iterdir())):
        response = shown.http.get(path)
        assert response.status_code == 200
        assert "default-src 'self'" in response.headers["content-security-policy"]
        named = set(re.findall(r"(?:https?:)?//[\w.-]+", response.text))
        assert {each for each in named if "w3.org" not in each and "127.0.0.1" not in each} <= {"//"}, path


def test_another_host_name_is_refused(shown: Shown) -> None:
    assert shown.http.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert shown.http.get("/", headers={"Host": "localhost:8090"}).status_code == 200


def test_the_playground_asks(shown: Shown) -> None:
    response = shown.http.post("/api/ask/classify", json={"image": "/9j/", "text": "a cat"}, headers=ASK)
    assert response.status_code == 200, response.text
    assert response.json()["answer"] == {"got": ["image", "text"]}


def test_a_page_of_another_site_may_not_ask(shown: Shown) -> None:
    response = shown.http.post("/api/ask/classify", content=b"{}", headers={"Content-Type": "text/plain"})
    assert response.status_code == 403
    assert shown.http.options("/api/ask/classify", headers={"Origin": "http://evil.example"}).status_code == 405
    assert shown.door.requests == []


def test_an_error_of_the_site_is_told(shown: Shown) -> None:
    shown.door.answer = failing(ErrorCode.OVERLOADED, "too many")
    response = shown.http.post("/api/ask/classify", json={"image": "/9j/", "text": "a"}, headers=ASK)
    assert response.json()["error"]["code"] == "overloaded"
    assert shown.http.post("/api/ask/nope", json={"a": "b"}, headers=ASK).status_code == 404
    assert shown.http.get("/nothing").status_code == 404


def test_too_many_browsers_are_refused(shown: Shown) -> None:
    shown.dashboard.browsers = 32
    assert "close one" in shown.http.get("/api/updates").json()["error"]["message"]


def test_at_its_end_the_dashboard_calls_itself_by_its_name(shown: Shown) -> None:
    shown.feed.site.close()
    told = shown.http.post("/api/ask/classify", json={"image": "/9j/", "text": "a"}, headers=ASK).json()["error"]
    assert told["message"].startswith("this dashboard is ending")


DRAIN = "/api/drain/gw-a"
RETAINED = "s2m3/v1/devices/gw-a/drain"


def test_a_device_is_drained_and_put_back(controlled: Shown) -> None:
    assert controlled.feed.update(None).entries["about"]["control"] is True  # type: ignore[call-overload, index]
    assert controlled.http.post(DRAIN, json={"drain": True}, headers=ASK).json() == {"device": "gw-a", "drain": True}
    assert controlled.broker.retained[RETAINED].payload == b'{"drain":true}'
    assert controlled.http.post(DRAIN, json={"drain": False}, headers=ASK).status_code == 200
    assert RETAINED not in controlled.broker.retained


def test_without_the_flag_the_page_gives_no_orders(shown: Shown) -> None:
    assert shown.feed.update(None).entries["about"]["control"] is False  # type: ignore[call-overload, index]
    response = shown.http.post(DRAIN, json={"drain": True}, headers=ASK)
    assert response.status_code == 403
    assert "--allow-control" in response.json()["error"]["message"]
    assert RETAINED not in shown.broker.retained


@pytest.mark.parametrize("path", [DRAIN, "/api/ask/classify"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/json"},
        ASK | {"Origin": "http://evil.example"},
        ASK | {"Origin": "http://127.0.0.1:9999"},
        ASK | {"Origin": "null"},
        {"Content-Type": "text/plain", "Origin": "http://127.0.0.1:8090"},
    ],
    ids=["no-header", "other-site", "other-port", "null", "form"],
)
def test_a_page_of_another_site_may_not_order_and_not_ask(
    controlled: Shown, path: str, headers: dict[str, str]
) -> None:
    response = controlled.http.post(path, content=b'{"drain": true}', headers=headers)
    assert response.status_code == 403
    assert RETAINED not in controlled.broker.retained
    assert controlled.door.requests == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/drain/gw-z", b'{"drain": true}', 404),
        ("/api/drain/%2b", b'{"drain": true}', 404),
        (DRAIN, b"", 400),
        (DRAIN, b'{"drain": 1}', 400),
        (DRAIN, b'{"drain": "yes"}', 400),
        (DRAIN, b"[" * 200, 400),
        (DRAIN, b" " * 10_000 + b'{"drain": true}', 413),
    ],
)
def test_a_wrong_order_is_told(controlled: Shown, path: str, body: bytes, status: int) -> None:
    headers = ASK | {"Origin": "http://127.0.0.1:8090"}
    response = controlled.http.post(path, content=body, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["message"]


def test_an_order_without_a_broker_is_refused(controlled: Shown) -> None:
    client = next(name for name in controlled.broker.connected if name != "gw-a")
    with controlled.broker.partitioned(client):
        response = controlled.http.post(DRAIN, json={"drain": True}, headers=ASK)
        assert response.status_code == 503
        assert "the broker did not take the order" in response.json()["error"]["message"]
    assert RETAINED not in controlled.broker.retained
