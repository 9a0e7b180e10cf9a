"""A whole site on the broker that ``s2m3 broker init`` sets up: what is permitted works, and nothing is denied."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.client import Client
from broker.servers.access import Account, Role
from broker.transport.connection import connection_file, read_connection
from s2m3.cli.main import main
from s2m3.reference.pictures import picture
from tests.patience import PATIENCE_S, until
from tests.secured import SecuredSite

COMMAND_S = 4 * PATIENCE_S
ACCOUNTS = (
    Account(Role.ORCHESTRATOR, "orchestrator"),
    Account(Role.OPERATOR, "operator"),
    Account(Role.OBSERVER, "grafana"),
    Account(Role.DEVICE, "gw-a"),
    Account(Role.DEVICE, "gw-b", ("classify", "zero-shot")),
    Account(Role.SENSOR, "cam-1", ("classify",)),
    Account(Role.SENSOR, "cam-2", ("classify",)),
)
PHOTO = picture("rocket.jpg").path
DENIED = re.compile(r"(?i)denied|not authori[sz]ed")


class Running:
    """The processes of the site, each with its own account."""

    def __init__(self, broker: SecuredSite, folder: Path) -> None:
        self.broker, self._folder = broker, folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def connection(self, name: str) -> str:
        """The connection file of an account."""
        return str(self.broker.folder(name) / "connection.yaml")

    def start(self, name: str) -> None:
        """Start the orchestrator, or a device's agent."""
        state = ["--state-dir", str(self._folder / "state")]
        arguments = ["orchestrator", *state]
        if name != "orchestrator":
            config = self._folder / f"{name}.yaml"
            values = {"id": name, "memory": "160MiB", "state_dir": str(self._folder / name)}
            config.write_text(yaml.safe_dump(values))
            arguments = ["agent", "--config", str(config)]
        with self.log(name).open("ab") as output:
            command = [sys.executable, "-m", "s2m3", *arguments, "--connection", self.connection(name)]
            self._processes[name] = subprocess.Popen(
                [*command, "--until-stdin-closes"], stdin=subprocess.PIPE, stdout=output, stderr=output
            )

    def kill(self, name: str) -> None:
        """End a process without warning."""
        with self._processes.pop(name) as process:
            process.kill()

    def log(self, name: str) -> Path:
        """The output of a process."""
        return self._folder / f"{name}.log"

    def stop(self) -> None:
        """End all processes."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            with process:
                process.wait(COMMAND_S)

    def s2m3(self, *arguments: str, who: str = "operator", expect: int | None = 0) -> str:
        """Run a command with an account, in this process; a start of Python takes longer than most commands."""
        with redirect_stdout(io.StringIO()) as printed:
            code = main([*arguments, "--connection", self.connection(who)])
        assert expect is None or code == expect, (arguments, printed.getvalue())
        return printed.getvalue()

    def status(self, who: str = "operator") -> Any:
        """The document of ``s2m3 status --json``."""
        return json.loads(self.s2m3("status", "--json", who=who, expect=None))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two devices that serve two tasks, over TLS, each process with its own account."""
    folder = tmp_path_factory.mktemp("secured")
    with ExitStack() as stack:
        broker = stack.enter_context(SecuredSite(folder / "site", ACCOUNTS, "log_type all"))
        site = Running(broker, folder)
        stack.callback(site.stop)
        for name in ("orchestrator", "gw-a", "gw-b"):
            site.start(name)
        until(lambda: len(site.status()["devices"]) == 2, COMMAND_S)
        for task in ("pocket/classify", "pocket/zero-shot"):
            site.s2m3("deploy", task)
        yield site


def test_each_command_of_the_operator_works_and_the_observer_sees_the_same(running: Running) -> None:
    for who in ("operator", "grafana"):
        seen = running.status(who)
        assert seen["orchestrator"]["online"]
        assert sorted(seen["devices"]) == ["gw-a", "gw-b"]
        assert sorted(seen["tasks"]) == ["classify", "zero-shot"]
        assert seen["certificates"].keys() == {"authority", "client", "broker"}
    answer = json.loads(
        running.s2m3("request", "zero-shot", "--image", str(PHOTO), "--text", "a rocket", "--text", "a cat", "--json")
    )
    assert answer["answer"]["label"] == "a rocket"


def test_a_sensor_asks_with_its_own_account_and_reads_its_answer(running: Running) -> None:
    answer = json.loads(running.s2m3("request", "classify", "--image", str(PHOTO), "--json", who="cam-1"))
    assert answer["answer"]["label"] == "missile"


def test_the_python_client_asks_as_a_sensor(running: Running) -> None:
    account = read_connection(connection_file(running.connection("cam-1")))
    with Client(account) as client:
        assert client.ask("classify", image=PHOTO, deadline_s=COMMAND_S).answer == "missile"


def test_a_sensor_of_mqtt_3_1_1_asks_over_tls(running: Running) -> None:
    where = running.broker.mosquitto_options("cam-2")
    where[where.index("-V") + 1] = "mqttv311"
    topic, reply_to = "s2m3/v1/tasks/classify/requests/cam-2/311", "s2m3/v1/clients/cam-2/results/311"
    # One connection at a time has the account's client id: its session keeps the answer between the two commands.
    subscribe = ["mosquitto_sub", *where, "-c", "-q", "1", "-t", reply_to]
    subprocess.run([*subscribe, "-E"], check=True, timeout=COMMAND_S)
    subprocess.run(
        ["mosquitto_pub", *where, "-c", "-q", "1", "-t", topic, "-f", str(PHOTO)], check=True, timeout=COMMAND_S
    )
    read = [*subscribe, "-C", "1", "-W", str(round(COMMAND_S))]
    done = subprocess.run(read, capture_output=True, timeout=COMMAND_S, check=True)
    assert json.loads(done.stdout)["answer"]["label"] == "missile"
    subprocess.run(["mosquitto_sub", *where, "-q", "1", "-t", reply_to, "-E"], check=True, timeout=COMMAND_S)  # forgets


def test_plain_mosquitto_clients_are_sensors_over_tls(running: Running) -> None:
    where = running.broker.mosquitto_options("cam-2")
    reply_to, topic = "s2m3/v1/clients/cam-2/results/1", "s2m3/v1/tasks/classify/requests/cam-2/1"
    request = ["mosquitto_rr", *where, "-q", "1", "-W", str(round(COMMAND_S)), "-t", topic, "-e", reply_to]
    done = subprocess.run([*request, "-m", "no picture"], capture_output=True, timeout=COMMAND_S, check=True)
    assert json.loads(done.stdout)["error"]["code"] == "bad_input"
    # One connection at a time has the account's client id, so the session keeps the answer between the two commands.
    kept = ["-c", "-x", "60", "-q", "1"]
    subscribe = ["mosquitto_sub", *where, *kept, "-t", "s2m3/v1/clients/cam-2/results/2"]
    subprocess.run([*subscribe, "-E"], check=True, timeout=COMMAND_S)
    publish = ["mosquitto_pub", *where, *kept, "-t", f"{topic[:-1]}2", "-f", str(PHOTO)]
    subprocess.run(publish, check=True, timeout=COMMAND_S)
    done = subprocess.run(
        [*subscribe, "-C", "1", "-W", str(round(COMMAND_S))], capture_output=True, check=True, timeout=COMMAND_S
    )
    assert json.loads(done.stdout)["answer"]["label"] == "missile"


def test_agents_measure_their_links_and_a_drain_and_a_failure_move_the_modules(running: Running) -> None:
    until(lambda: all("link" in running.log(name).read_text() for name in ("gw-a", "gw-b")), COMMAND_S)
    running.s2m3("drain", "gw-a")

    def stands(device: str) -> str:
        return str((running.status()["devices"][device].get("standing") or {}).get("standing"))

    until(lambda: stands("gw-a") == "drained", COMMAND_S)
    running.s2m3("drain", "gw-a", "--undo")
    until(lambda: stands("gw-a") == "online", COMMAND_S)
    running.kill("gw-b")
    until(lambda: stands("gw-b") == "dead", COMMAND_S)
    answer = json.loads(running.s2m3("request", "classify", "--image", str(PHOTO), "--json", who="cam-1"))
    assert answer["answer"]["label"] == "missile"
    running.start("gw-b")


def test_nothing_that_the_site_does_is_denied(running: Running) -> None:
    """The last test of this file: it reads what the broker and the processes wrote during all of the others."""
    lines = running.broker.log.read_text().splitlines()
    assert [line for line in lines if DENIED.search(line)] == []
    asked = [line.split("\t")[1].rsplit(" (QoS", 1)[0] for line in lines if re.match(r"\d+: \t", line)]
    granted = [line.split(" ", 3)[3] for line in lines if re.match(r"\d+: \S+ [012] \S+$", line)]
    assert asked
    assert sorted(set(asked) - set(granted)) == []
    for name in ("orchestrator", "gw-a", "gw-b"):
        assert [line for line in running.log(name).read_text().splitlines() if DENIED.search(line)] == []


def test_no_secret_is_in_any_output(running: Running) -> None:
    secrets = [path.read_text() for path in running.broker.setup.folder.rglob("*password")]
    printed = [running.broker.log, *(running.log(name) for name in ("orchestrator", "gw-a", "gw-b"))]
    for path in printed:
        assert not any(secret in path.read_text() for secret in secrets), path


def test_a_sensor_that_deploys_is_told_whose_account_may(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    # last, because the broker denies it
    for command in (["deploy", "pocket/classify"], ["status"]):
        assert main([*command, "--connection", running.connection("cam-2")]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "this account may not: use an operator's" in said
