"""Connections of S2M3 never end each other's, and one that another client ends says why. On real Mosquitto."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.protocol.client_ids import client_id
from broker.servers.mosquitto import MosquittoBroker
from broker.transport.connection import parse_url
from s2m3.testbed.replay.stage import connected
from s2m3.testbed.site import ORCHESTRATOR, SPARE, Site
from tests.patience import PATIENCE_S, until
from tests.threads import small_site

StartMosquitto = Callable[..., MosquittoBroker]


@pytest.fixture
def logged(start_mosquitto: StartMosquitto, tmp_path: Path) -> tuple[str, Path]:
    """The url of a Mosquitto, and the file to which it logs every connection."""
    path = tmp_path / "broker.log"
    return start_mosquitto(f"log_dest file {path}").url, path


def ids_of(log: Path) -> list[str]:
    """The client ids of all connections, in order."""
    return re.findall(r"New client connected from \S+ as (\S+) \(", log.read_text(encoding="utf-8"))


def test_two_sites_with_equal_devices_on_one_broker_both_serve_and_no_device_name_meets_another_connection(
    logged: tuple[str, Path], tmp_path: Path
) -> None:
    url, log = logged
    devices = ("gw-a", "gw-a-data", "control")
    with ExitStack() as stack:
        sites = [
            stack.enter_context(small_site(url, tmp_path / name, name, devices)) for name in ("plant-4", "plant-5/hall")
        ]
        sites.append(stack.enter_context(small_site(url, tmp_path / "none", None, devices)))
        for _ in range(3):
            assert [site.ask() for site in sites] == ["plant-4", "plant-5/hall", "None"]
    own = {client_id("devices", device, end) for device in devices for end in ("control", "data")}
    assert own <= set(ids_of(log))
    assert "already connected" not in log.read_text(encoding="utf-8")


def test_trial_runs_beside_a_site_use_other_client_ids(logged: tuple[str, Path], tmp_path: Path) -> None:
    url, log = logged
    with ExitStack() as stack:
        site = stack.enter_context(small_site(url, tmp_path / "site"))
        trials = [stack.enter_context(Site(url, [], name="replay")) for _ in range(2)]
        for trial in trials:
            stack.enter_context(connected(trial.connection, lambda _: None))
            trial.start_orchestrator(SPARE)
            trial.require(lambda seen: seen.leads, PATIENCE_S, f"the {ORCHESTRATOR} doesn't lead")
        assert site.ask() == "None"
    assert "already connected" not in log.read_text(encoding="utf-8")


@contextmanager
def foreign(url: str, name: str) -> Iterator[None]:
    """Another program that takes a client id, and connects again whenever it loses it."""
    address = parse_url(url)
    command = ["mosquitto_sub", "-V", "5", "-h", address.host, "-p", str(address.port), "-i", name, "-t", "x"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        yield
        process.terminate()


@pytest.mark.parametrize("end", ["control", "data"])
def test_an_agent_whose_client_id_a_foreign_client_takes_says_so_and_serves_when_it_is_gone(
    start_mosquitto: StartMosquitto, tmp_path: Path, end: str
) -> None:
    url, name = start_mosquitto().url, client_id("devices", "gw-a", end)
    with small_site(url, tmp_path) as site:
        with capture_logs() as log, foreign(url, name):
            said = f"the client id {name} seems to be in use elsewhere"
            until(lambda: any(line["event"] == "link_down" and said in line["reason"] for line in log))
        assert {line["link"] for line in log if said in line.get("reason", "") and "link" in line} == {end}
        until(site.answers)


def test_an_orchestrator_whose_client_id_a_foreign_client_takes_says_so_and_leads_when_it_is_gone(
    logged: tuple[str, Path], tmp_path: Path
) -> None:
    url, path = logged
    with small_site(url, tmp_path) as site:
        (name,) = [each for each in ids_of(path) if re.fullmatch(r"s2m3\.orchestrators\.\w+\.control", each)]
        with capture_logs() as log, foreign(url, name):
            said = f"the client id {name} seems to be in use elsewhere"
            until(lambda: any(line["event"] == "link_down" and said in line["reason"] for line in log))
        until(site.answers)
