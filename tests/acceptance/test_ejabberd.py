"""A site at ejabberd, the other broker of MQTT 5 in Debian: it has no shared subscriptions, and states no limit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from broker.servers.ports import HOST, free_port, listens
from broker.transport.connection import Connection
from edge_agent.config import AgentConfig
from s2m3.catalogue import load_task
from s2m3.reference.pictures import picture
from s2m3.testbed.site import Site
from tests.patience import PATIENCE_S, until

pytestmark = pytest.mark.long
LIBRARIES = sorted(Path("/usr/lib").glob("*/ejabberd-*/ebin"))
SMALL_BYTES = 128 * 1024
TASK = "pocket/classify"


class Ejabberd(NamedTuple):
    """The addresses of one that runs: with any size, and with a small one."""

    connection: Connection
    small: Connection


@pytest.fixture(scope="module")
def ejabberd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ejabberd]:
    """An ejabberd of this file's own, without the system's service; any login is taken."""
    program = shutil.which("erl")
    if program is None or not LIBRARIES:
        pytest.skip("ejabberd is missing: apt-get install ejabberd (its service needn't run)")
    folder = tmp_path_factory.mktemp("ejabberd")
    ports = free_port(), free_port()
    listeners = [{"port": port, "ip": HOST, "module": "mod_mqtt"} for port in ports]
    listeners[1] |= {"max_payload_size": SMALL_BYTES}
    settings = {
        "hosts": ["localhost"],
        "loglevel": "warning",
        "auth_method": ["anonymous"],
        "anonymous_protocol": "login_anon",
        "allow_multiple_connections": True,
        "listen": listeners,
        "modules": {"mod_mqtt": {}},
    }
    (folder / "ejabberd.yml").write_text(yaml.safe_dump(settings))
    places = {"EJABBERD_CONFIG_PATH": "ejabberd.yml", "EJABBERD_LOG_PATH": "ejabberd.log", "HOME": "."}
    environment = {**os.environ, **{name: str(folder / path) for name, path in places.items()}}
    options = ["-noinput", "-boot", "start_sasl", "-sasl", "sasl_error_logger", "false"]
    options += ["-pa", str(LIBRARIES[-1]), "-mnesia", "dir", json.dumps(str(folder / "database")), "-s", "ejabberd"]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen([program, *options], cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        until(lambda: process.poll() is not None or all(map(listens, ports)), 3 * PATIENCE_S)
        assert process.poll() is None, (folder / "output").read_text()
        yield Ejabberd(*(Connection(HOST, port, user="site", password="any") for port in ports))  # noqa: S106 - none is checked
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.fixture
def prints(exit_code: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs ``s2m3 …`` as this login; returns what it printed."""

    def run(connection: Connection, *arguments: str, expect: int) -> str:
        capsys.readouterr()
        login = f"mqtt://{connection.user}:{connection.password}@{connection}"
        assert exit_code([*arguments, "--broker", login]) == expect
        return capsys.readouterr().out

    return run


def test_a_check_finds_that_it_shares_no_messages_and_has_all_else(
    ejabberd: Ejabberd, prints: Callable[..., str]
) -> None:
    found = json.loads(prints(ejabberd.connection, "broker", "check", "--json", "--task", TASK, expect=0))
    lacking = {name for name, each in found["checks"].items() if each["state"] != "yes"}
    assert lacking == {"shared subscriptions"}
    assert "it says that it has none" in found["checks"]["shared subscriptions"]["text"]
    assert found["refused_packet_bytes"] is None


def test_a_limit_that_it_does_not_state_is_found_and_deploy_tells_of_it(
    ejabberd: Ejabberd, prints: Callable[..., str]
) -> None:
    found = json.loads(prints(ejabberd.small, "broker", "check", "--json", "--task", TASK, expect=1))
    assert found["stated_packet_bytes"] is None
    assert SMALL_BYTES * 31 / 32 <= found["largest_packet_bytes"] <= SMALL_BYTES + 256
    told = prints(ejabberd.small, "deploy", TASK, "--timeout", "0.5", expect=1)
    assert told.startswith("classify: not deployed: the broker refused a message of 249.0 KiB")


def test_a_site_answers_and_its_front_door_may_die(ejabberd: Ejabberd) -> None:
    agents = [AgentConfig(id=name, memory="200MiB") for name in ("gw-a", "gw-b")]
    with Site(ejabberd.connection, agents) as site:
        site.serve([load_task(TASK)])

        def ask() -> str:
            return str(site.client.ask("classify", image=picture("coffee.png").path, deadline_s=PATIENCE_S))

        assert [ask() for _ in range(5)] == ["espresso"] * 5
        assert site.client.duplicates == 0, "one device alone got each request"
        (door,) = site.observer.routes["classify"].front_door
        site.kill(door)
        assert [ask() for _ in range(5)] == ["espresso"] * 5
        (other,) = {"gw-a", "gw-b"} - {door}
        site.require(lambda seen: seen.routes["classify"].front_door == (other,), PATIENCE_S, "no other front door")
