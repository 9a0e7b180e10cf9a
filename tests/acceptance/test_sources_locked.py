"""``s2m3 sources`` on a broker that ``s2m3 broker init`` set up: an account of its role is permitted all that it needs.

The witness plays the rest of the site, so no device computes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from broker.protocol.codec import encode
from broker.protocol.messages import Result
from broker.protocol.reports import Standing
from broker.servers.access import Account, Role
from tests.builders import able, route, route_node
from tests.patience import PATIENCE_S, until
from tests.secured import Peer, SecuredSite

P = "s2m3/v1"
OUTSIDE = {"reads": ("frigate/#", "homeassistant/#"), "writes": ("home/#", "homeassistant/#")}
ACCOUNTS = (
    Account(Role.SOURCES, "sources", **OUTSIDE),
    Account(Role.SOURCES, "spare", **OUTSIDE),
    Account(Role.OBSERVER, "homeassistant", reads=("homeassistant/#",), writes=("homeassistant/#",)),
)
CONFIG = """\
homeassistant: true
sources:
- {source: denied, subscribe: garage/#, task: classify}
- {source: door, subscribe: frigate/+/person/snapshot, task: classify, publish: "home/{1}/who"}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredSite]:
    with SecuredSite(tmp_path_factory.mktemp("locked") / "site", ACCOUNTS) as running:
        running.add_witness()
        yield running


def messages(peer: Peer, pattern: str) -> list[tuple[str, bytes]]:
    with peer._changed:
        return [(topic, payload) for topic, payload in peer._messages if re.fullmatch(pattern, topic)]


def test_a_source_and_its_spare_do_all_that_they_must_and_nothing_is_denied(site: SecuredSite, tmp_path: Path) -> None:
    (tmp_path / "sources.yaml").write_text(CONFIG)
    with ExitStack() as stack:
        witness = stack.enter_context(site.witness())
        witness.subscribe("#")
        nodes = {"node": route_node("m", ("image",), able("gw-a"))}
        witness.publish(f"{P}/tasks/classify/route", encode(route("classify", nodes)), retain=True)
        standing = Standing(device="gw-a", standing="online", since=1.0, why="")
        witness.publish(f"{P}/devices/gw-a/standing", encode(standing), retain=True)
        home = stack.enter_context(Peer(site, "homeassistant"))
        assert home.subscribe("homeassistant/#") == "Granted QoS 1"
        assert home.subscribe(f"{P}/sources/+/answer") == "Granted QoS 1"
        logs = []
        for name in ("sources", "spare"):
            logs.append(tmp_path / f"{name}.log")
            connection = str(site.folder(name) / "connection.yaml")
            command = [sys.executable, "-m", "s2m3", "sources", "--connection", connection]
            with logs[-1].open("wb") as output:
                process = subprocess.Popen([*command, "--config", str(tmp_path / "sources.yaml")], stderr=output)
            stack.callback(process.wait, PATIENCE_S)
            stack.callback(process.terminate)
            says = "leading" if name == "sources" else "waiting_as_spare"
            until(lambda log=logs[-1], says=says: f'"event": "{says}"' in log.read_text())  # type: ignore[misc]
        until(lambda: messages(home, r"homeassistant/device/s2m3/device_gw-a/config"))
        witness.publish("frigate/door/person/snapshot", b"\xff\xd8\xff a picture")
        asked = rf"{P}/tasks/classify/requests/sources/(\w+)"
        until(lambda: messages(witness, asked))
        topic, _ = messages(witness, asked)[0]
        told = encode(Result(request="r", task="classify", answer={"label": "a cat", "score": 0.5}))
        witness.publish(f"{P}/clients/sources/results/{topic.rpartition('/')[2]}", told)
        until(lambda: messages(witness, "home/door/who"))
        until(lambda: messages(home, rf"{P}/sources/door/answer"))
        assert json.loads(messages(witness, "home/door/who")[0][1])["label"] == "a cat"
        (denied,) = {payload for _, payload in messages(home, rf"{P}/sources/denied/answer")}
        assert "the broker refuses the subscription to garage/#" in json.loads(denied)["error"]["message"]
        said = [line for log in logs for line in log.read_text().splitlines() if "denied_by_broker" in line]
        assert [json.loads(line)["topic"] for line in said] == ["garage/#"], "and nothing else is"
