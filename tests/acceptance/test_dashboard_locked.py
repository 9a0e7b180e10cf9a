"""The dashboard with an observer's account on a locked site: it sees everything, and says what it can't do."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from broker.protocol.client_ids import client_id
from broker.protocol.codec import encode
from broker.protocol.topics import DEVICE_DRAIN, DEVICE_STATE, TASK_ROUTE
from broker.servers.access import Account, Role
from broker.transport.connection import connection_file, read_connection
from s2m3.dashboard.app import PAGE, Dashboard, application
from s2m3.dashboard.feed import Feed
from tests.builders import encoder_route, online
from tests.patience import PATIENCE_S, until
from tests.secured import Peer, SecuredSite

PREFIX = "s2m3/v1"
ACCOUNTS = (
    *(Account(Role.OBSERVER, "screen"), Account(Role.DASHBOARD, "desk")),
    *(Account(Role.ORCHESTRATOR, "orchestrator"), Account(Role.DEVICE, "gw-a")),
)


def test_an_observer_sees_the_site_and_is_told_that_it_may_not_ask(tmp_path: Path) -> None:
    with SecuredSite(tmp_path / "site", ACCOUNTS) as site:
        with Peer(site, "orchestrator") as leader:
            leader.publish(TASK_ROUTE.at(PREFIX, task="classify"), encode(encoder_route("classify")), retain=True)
        with closing(Feed(read_connection(connection_file(str(site.folder("screen") / "connection.yaml"))))) as feed:
            until(lambda: "task/classify" in feed.update(None).entries)
            denied = feed.update(None).entries["denied"]
            assert denied == {"s2m3/v1/clients/screen/results/+": "Not authorized"}
            http = TestClient(application(Dashboard(feed)), base_url="http://127.0.0.1:8090")
            refused = http.post("/api/ask/classify", json={"text": "a cat"}, headers={"X-S2M3": "ask"})
            assert refused.status_code == 503
            assert "the broker refused s2m3/v1/clients/screen/results/+" in refused.json()["error"]["message"]


@pytest.mark.parametrize(("who", "may"), [("desk", True), ("screen", False)])
def test_a_device_is_drained_by_an_account_that_may(tmp_path: Path, who: str, *, may: bool) -> None:
    topic = DEVICE_DRAIN.at(PREFIX, device="gw-a")
    with SecuredSite(tmp_path / "site", ACCOUNTS) as site, Peer(site, "orchestrator") as leader:
        assert leader.subscribe(topic) == "Granted QoS 1"
        own = client_id("devices", "gw-a", "control")
        with Peer(site, "gw-a", login=site.login("gw-a"), client_id=own) as agent:
            agent.publish(DEVICE_STATE.at(PREFIX, device="gw-a"), encode(online()), retain=True)
        connection = read_connection(connection_file(str(site.folder(who) / "connection.yaml")))
        with closing(Feed(connection, allow_control=True)) as feed:
            until(lambda: feed.knows_device("gw-a"))
            http = TestClient(application(Dashboard(feed)), base_url="http://127.0.0.1:8090")
            response = http.post("/api/drain/gw-a", json={"drain": True}, headers={"X-S2M3": "ask"})
            if may:
                assert response.status_code == 200, response.text
                assert json.loads(leader.next(topic)) == {"drain": True}
            else:
                assert response.status_code == 403
                told = response.json()["error"]["message"]
                assert told.startswith(f"the broker refused {topic}: Not authorized; this account may not drain")


LINES = """
import { snippets } from %s;
const about = { broker: "mqtts://127.0.0.1:%s", prefix: "s2m3/v1", login: true };
const inputs = { image: { kind: "image" }, question: { kind: "text" } };
console.log(snippets(about, "vqa", inputs, (input) => input === "question" ? ["what's it?"] : undefined).mosquitto_pub);
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node isn't installed")
def test_the_pages_lines_for_a_shell_work_with_an_account(tmp_path: Path) -> None:
    (tmp_path / "snippets.mjs").write_text((PAGE / "snippets.js").read_text(encoding="utf-8"), encoding="utf-8")
    with SecuredSite(tmp_path / "site", ACCOUNTS) as site:
        site.add_witness()
        (tmp_path / "lines.mjs").write_text(LINES % (json.dumps(str(tmp_path / "snippets.mjs")), site.port))
        node = ["node", str(tmp_path / "lines.mjs")]
        shown = subprocess.run(node, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
        folder = site.folder("desk")
        (folder / "frame.jpg").write_bytes(b"\xff\xd8 a picture")
        shell = ["bash", "-c", shown.replace("NAME", "desk")]
        with site.witness() as witness:
            assert witness.subscribe(f"{PREFIX}/tasks/vqa/requests/desk/1") == "Granted QoS 1"
            with subprocess.Popen(shell, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
                request = json.loads(witness.next(f"{PREFIX}/tasks/vqa/requests/desk/1"))
                assert request["question"] == "what's it?"
                assert base64.b64decode(request["image"]) == b"\xff\xd8 a picture"
                witness.publish(f"{PREFIX}/clients/desk/results/1", '{"answer": "a rocket"}')
                assert process.communicate(timeout=2 * PATIENCE_S)[0] == '{"answer": "a rocket"}\n'
