"""``s2m3 http`` as a process at a real Mosquitto, asked by curl: it answers, heals, and ends in time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from broker.servers.access import Account, Role
from broker.servers.mosquitto import MosquittoBroker
from broker.transport.connect import connect
from broker.transport.connection import connection_file, parse_url, read_connection
from tests.certificates import Authority
from tests.http_site import IMAGE, TEXT, FrontDoor
from tests.patience import PATIENCE_S, until
from tests.secured import WITNESS, SecuredSite

TOKEN = "a-t0ken"  # noqa: S105 - of this test
ASKED = '{"image": "/9j/"}'
JPEG = b"\xff\xd8\xff picture"


class Process:
    """The door, and curl."""

    def __init__(self, *options: str, curl: Sequence[str] = ()) -> None:
        command = [sys.executable, "-m", "s2m3", "http", "--port", "0", "--until-stdin-closes", *options]
        pipe = subprocess.PIPE  # also as input: its end ends the door when a test fails
        self.running = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert self.running.stdout is not None
        self.url = self.running.stdout.readline().removesuffix("; Ctrl-C ends it\n").rpartition(" ")[2]
        self._curl = curl

    def curl(self, path: str, *options: str) -> tuple[int, str]:
        """The status and the body that curl gets."""
        command = ["curl", "--silent", "--write-out", "\n%{http_code}", *self._curl, *options, self.url + path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
        body, _, status = done.stdout.rpartition("\n")
        return int(status), body

    def is_healthy(self) -> bool:
        return self.curl("/healthz")[0] == 200

    def end(self, number: int = signal.SIGTERM) -> str:
        """End it by a signal; returns its log."""
        self.running.send_signal(number)
        _, logged = self.running.communicate(timeout=PATIENCE_S)
        assert self.running.returncode == 0, logged
        return logged


@pytest.fixture(scope="module")
def broker() -> Iterator[MosquittoBroker]:
    with MosquittoBroker() as running:
        yield running


@pytest.fixture(scope="module")
def front_door(broker: MosquittoBroker) -> Iterator[FrontDoor]:
    made = FrontDoor(connect, parse_url(broker.url))
    made.serve("classify", {"image": IMAGE})
    made.serve("vqa", {"image": IMAGE, "question": TEXT})
    yield made
    made.transport.close()


def test_curl_asks_and_the_door_heals_when_the_broker_was_away(
    broker: MosquittoBroker, front_door: FrontDoor, tmp_path: Path
) -> None:
    picture = tmp_path / "cat.jpg"
    picture.write_bytes(JPEG)
    door = Process("--broker", broker.url)
    until(door.is_healthy)
    until(lambda: "vqa" in door.curl("/v1/tasks")[1])
    status, body = door.curl("/v1/tasks/classify", "--data-binary", f"@{picture}")
    assert (status, json.loads(body)["answer"]) == (200, {"got": ["image"]})
    status, body = door.curl("/v1/tasks/vqa", "-F", f"image=@{picture}", "-F", "question=what is it?")
    assert (status, json.loads(body)["answer"]) == (200, {"got": ["image", "question"]})
    assert front_door.inputs[-1]["image"].data == JPEG
    assert door.curl("/v1/tasks/nothing", "-d", ASKED)[0] == 404
    broker.stop()
    until(lambda: not door.is_healthy())
    status, body = door.curl("/v1/tasks/classify", "--data-binary", f"@{picture}")
    assert status == 503
    assert "no connection to the broker" in json.loads(body)["error"]["message"]
    broker.start()
    until(lambda: door.curl("/v1/tasks/classify", "--data-binary", f"@{picture}")[0] == 200)
    assert "Traceback" not in door.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_what_is_pending_is_refused(
    broker: MosquittoBroker, front_door: FrontDoor, number: signal.Signals
) -> None:
    door = Process("--broker", broker.url)
    until(door.is_healthy)
    front_door.arrived.clear()
    answer, front_door.answer = front_door.answer, lambda *_: None
    try:
        command = ["curl", "--silent", "--write-out", "%{http_code}", "-d", ASKED, f"{door.url}/v1/tasks/classify"]
        asking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert front_door.arrived.wait(PATIENCE_S)
        door.end(number)
        said, _ = asking.communicate(timeout=PATIENCE_S)
    finally:
        front_door.answer = answer
    assert said.endswith("503")
    assert "ending" in said


def test_https_with_a_token(broker: MosquittoBroker, front_door: FrontDoor, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.issue("door", "127.0.0.1")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    given = ("--token-file", str(tmp_path / "token"), "--tls-cert", str(files.cert), "--tls-key", str(files.key))
    door = Process("--broker", broker.url, *given, curl=("--cacert", str(authority.file)))
    assert door.url.startswith("https://")
    until(door.is_healthy)
    assert door.curl("/v1/tasks")[0] == 401
    shown = ("-H", f"Authorization: Bearer {TOKEN}")
    until(lambda: "classify" in door.curl("/v1/tasks", *shown)[1])
    assert door.curl("/v1/tasks/classify", "-d", ASKED, *shown)[0] == 200
    assert TOKEN not in door.end()
    assert front_door.requests


def test_on_a_locked_site_it_asks_by_its_own_account(tmp_path: Path) -> None:
    accounts = (
        Account(Role.OPERATOR, "operator"),
        Account(Role.HTTP, "http"),
        Account(Role.HTTP, "few", ("classify",)),
    )
    with SecuredSite(tmp_path / "site", accounts) as site:
        site.add_witness()
        operator = read_connection(connection_file(site.folder("operator") / "connection.yaml"))
        witness = replace(operator, user=WITNESS, password=WITNESS, password_file=None, client_id=None)
        front_door = FrontDoor(connect, witness)
        for task in ("classify", "other"):
            front_door.serve(task, {"image": IMAGE})
        doors = {name: Process("--connection", str(site.folder(name) / "connection.yaml")) for name in ("http", "few")}
        for door in doors.values():
            until(door.is_healthy)
        until(lambda: "other" in doors["http"].curl("/v1/tasks")[1])
        assert doors["http"].curl("/v1/tasks/other", "-d", ASKED)[0] == 200
        status, body = doors["few"].curl("/v1/tasks")
        assert (status, "tasks/+/route" in body) == (503, True)
        until(lambda: doors["few"].curl("/v1/tasks/classify", "-d", ASKED)[0] == 200)  # its route comes with the first
        assert doors["few"].curl("/v1/tasks/other", "-d", ASKED)[0] == 503
        for door in doors.values():
            assert "Traceback" not in door.end()
        front_door.transport.close()
