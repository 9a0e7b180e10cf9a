"""Three machines with a cable between each site and the core, as network namespaces: a core, and two whole sites.

Each has its own Mosquitto as ``s2m3 broker init`` sets it up; the sites have an orchestrator and agents, all as real
processes with their own accounts over TLS. The tests follow each other.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.client import Client
from broker.protocol.topics import TOPICS, read
from broker.servers.access import Account, Role
from broker.servers.bridge import REPEATED, read_bridge
from broker.transport.connection import connection_file, read_connection
from s2m3.cli.main import main
from s2m3.reference.pictures import picture
from tests.namespaces import Machines, why_not
from tests.patience import PATIENCE_S, until
from tests.secured import Peer, SecuredSite

SLOW_S = 6 * PATIENCE_S  # agents import torch and load modules; a cut link is noticed after 22 s
P = "s2m3/v1"
PHOTO = picture("rocket.jpg").path
TEXTS = ["a rocket launch", "a cat"]
DEVICES = {"north": {"gw-a": "60MiB", "gw-b": "120MiB"}, "south": {"gw-c": "200MiB"}}
REQUESTS = 10
EVENTS = ("orchestrator/events", "devices/{device}/events")

pytestmark = pytest.mark.long


class ManySites:
    """The machines, their brokers, and the processes of the sites."""

    def __init__(self, machines: Machines, folder: Path, stack: ExitStack) -> None:
        self.machines, self._folder, self._stack = machines, folder, stack
        self.brokers: dict[str, SecuredSite] = {}
        self.witnesses: dict[str, Peer] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def set_up(self, name: str, *accounts: Account, joins: str | None = None) -> None:
        """Start a machine's broker, and a witness that sees everything there."""
        bridge = read_bridge(str(self.brokers[joins].folder(name))) if joins else None
        hosts, bind = [self.machines.address(name)], "0.0.0.0"  # noqa: S104 - of a namespace
        with self.machines.inside(name):
            broker = SecuredSite(self._folder / name, accounts, bridge=bridge, hosts=hosts, bind=bind)
            self.brokers[name] = self._stack.enter_context(broker)
            broker.add_witness()
            self.witnesses[name] = self._stack.enter_context(broker.witness())
            self.witnesses[name].subscribe("#")

    def start(self, site: str, name: str, memory: str | None = None) -> None:
        """Start the orchestrator or an agent of a site."""
        arguments = ["orchestrator", "--state-dir", str(self._folder / f"{site}-state"), "--no-spares"]
        if memory is not None:
            config = self._folder / f"{name}.yaml"
            config.write_text(yaml.safe_dump({"id": name, "memory": memory, "state_dir": str(self._folder / name)}))
            arguments = ["agent", "--config", str(config)]
        connection = ["--connection", self.connection(site, name)]
        with self.machines.inside(site), (self._folder / f"{site}-{name}.log").open("ab") as output:
            command = [sys.executable, "-m", "s2m3", *arguments, *connection, "--until-stdin-closes"]
            self._processes[name if memory else site] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output
            )

    def kill(self, name: str) -> None:
        """End an agent without warning."""
        with self._processes.pop(name) as process:
            process.kill()

    def stop(self) -> None:
        """End all processes."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            with process:
                process.wait(SLOW_S)

    def connection(self, site: str, name: str) -> str:
        """The connection file of an account."""
        return str(self.brokers[site].folder(name) / "connection.yaml")

    def s2m3(self, at: str, *arguments: str, expect: int | None = 0) -> Any:
        """Run a command as the operator of a machine; returns its JSON."""
        with self.machines.inside(at), redirect_stdout(io.StringIO()) as printed:
            code = main([*arguments, "--json", "--connection", self.connection(at, "operator")])
        assert expect is None or code == expect, (arguments, printed.getvalue())
        return json.loads(printed.getvalue())

    def ask(self, site: str, times: int, task: str = "zero-shot") -> list[str]:
        """Ask a site, as a sensor of its own; returns the answers."""
        values: dict[str, Any] = {"image": PHOTO} | ({"text": TEXTS} if task == "zero-shot" else {})
        account = read_connection(connection_file(self.connection(site, "cam-1")))
        with self.machines.inside(site), Client(account) as client:
            return [str(client.ask(task, **values, deadline_s=SLOW_S).answer) for _ in range(times)]

    def kept(self, at: str, prefix: str) -> dict[str, bytes]:
        """The retained messages of a broker that cross up, by their topics without the prefix."""
        with self.machines.inside(at), self.brokers[at].witness() as looking:
            looking.subscribe(f"{prefix}/#")
            looking.subscribe("end/of")
            looking.publish("end/of", "what is kept")
            looking.wait_for("what is kept")
            found = {topic: said for topic, said in looking.all() if topic.startswith(prefix)}
        told = {topic: read(prefix, topic, said) for topic, said in found.items()}
        return {
            topic.removeprefix(prefix): found[topic]
            for topic, incoming in told.items()
            if incoming is not None and incoming.topic.crosses == "up" and incoming.topic not in REPEATED
        }

    def events(self, at: str, prefix: str) -> list[bytes]:
        """The events that a witness heard, in order, each once: a link that comes back may bring one twice."""
        heard = ((read(prefix, topic, said), said) for topic, said in self.witnesses[at].all())
        return list(dict.fromkeys(said for incoming, said in heard if incoming and incoming.topic.template in EVENTS))


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManySites]:
    """A core and two sites that are joined to it."""
    if reason := why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        machines = stack.enter_context(Machines("core", "north", "south"))
        there = ManySites(machines, tmp_path_factory.mktemp("many"), stack)
        there.set_up("core", Account(Role.OPERATOR, "operator"), *(Account(Role.BRIDGE, name) for name in DEVICES))
        stack.callback(there.stop)
        for name, devices in DEVICES.items():
            roles = {Role.ORCHESTRATOR: "orchestrator", Role.OPERATOR: "operator", Role.SENSOR: "cam-1"}
            accounts = (Account(role, each) for role, each in roles.items())
            there.set_up(name, *accounts, *(Account(Role.DEVICE, each) for each in devices), joins="core")
            there.start(name, "orchestrator")
            for device, memory in devices.items():
                there.start(name, device, memory)
        yield there


def at_core(sites: ManySites, site: str) -> Any:
    return sites.s2m3("core", "status", "--site", f"sites/{site}", expect=None)


def has_devices(sites: ManySites, site: str, devices: Collection[str]) -> bool:
    return set(at_core(sites, site)["devices"]) == set(devices)


def serves(sites: ManySites, site: str, task: str) -> bool:
    route = sites.s2m3(site, "status", expect=None)["tasks"].get(task, {})
    return "unavailable" not in route and all(
        node["devices"] for node in route.get("nodes", {"": {"devices": ()}}).values()
    )


def is_told_at_core(sites: ManySites, site: str) -> bool:
    """Whether the task's status, which comes up to a second after its route, names the same revision."""
    seen = at_core(sites, site)
    told, route = (seen[kind].get("zero-shot", {}) for kind in ("statuses", "tasks"))
    return "revision" in told and bool(told["revision"] == route.get("revision"))


def test_a_task_that_is_deployed_at_the_core_is_served_at_both_sites(sites: ManySites) -> None:
    for name, devices in DEVICES.items():
        until(partial(has_devices, sites, name, devices.keys()), SLOW_S)
    deployed = sites.s2m3("core", "deploy", "pocket/zero-shot", "--site", "sites/all", "--timeout", f"{SLOW_S:g}")
    assert deployed["sites"].keys() == DEVICES.keys()
    for name in DEVICES:
        assert sites.ask(name, 1) == [TEXTS[0]]
        assert at_core(sites, name)["bridge"] == "up"
        until(partial(is_told_at_core, sites, name), SLOW_S)


def test_pictures_tensors_and_answers_stay_in_their_site(sites: ManySites) -> None:
    before = sites.machines.carried_bytes("north")
    here = sites.witnesses["north"]
    tensors = [topic for topic, _ in here.all() if topic.startswith(f"{P}/tensors/")]
    assert sites.ask("north", REQUESTS) == [TEXTS[0]] * REQUESTS
    until(lambda: sum(f"{P}/clients/" in topic for topic, _ in here.all()) >= REQUESTS + 1)
    exchanged = [(topic, said) for topic, said in here.all() if topic.startswith(f"{P}/tensors/")][len(tensors) :]
    assert len(exchanged) >= REQUESTS  # from one device to the other
    pictures = REQUESTS * PHOTO.stat().st_size
    crossed = sites.machines.carried_bytes("north") - before
    print(f"{pictures} bytes of pictures, {len(exchanged)} tensor messages; {crossed} bytes on the uplink")  # noqa: T201
    assert before > 0
    assert crossed < pictures / 4
    allowed = {topic.template for topic in TOPICS if topic.crosses} | {"bridge/state"}
    for topic in sites.witnesses["core"].topics():
        incoming = next(
            (found for each in ("north", "south", "all") if (found := read(f"sites/{each}/{P}", topic, b""))), None
        )
        assert incoming is not None, topic
        assert incoming.topic.template in allowed


def test_a_cut_uplink_leaves_a_site_working_and_healing_loses_nothing(sites: ManySites) -> None:
    sites.machines.unplug("north")
    sites.kill("gw-b")  # an event, a standing, a state, and two changes of the route that the core can't hear now
    until(
        lambda: sites.s2m3("north", "status", expect=None)["devices"]["gw-b"]["standing"]["standing"] == "dead", SLOW_S
    )
    sites.start("north", "gw-b", DEVICES["north"]["gw-b"])
    until(lambda: serves(sites, "north", "zero-shot"), SLOW_S)
    assert sites.ask("north", 3) == [TEXTS[0]] * 3
    until(lambda: at_core(sites, "north")["bridge"] == "down", SLOW_S)
    told = sites.s2m3("core", "deploy", "pocket/classify", "--site", "sites/all", "--timeout", f"{SLOW_S:g}", expect=1)
    assert told["sites"]["south"]["revision"]
    gone = sites.s2m3("core", "undeploy", "zero-shot", "--site", "sites/all", expect=1)
    assert gone["sites"] == {"north": False, "south": True}
    assert sites.ask("north", 3) == [TEXTS[0]] * 3  # it hasn't heard
    sites.machines.plug("north")
    until(lambda: at_core(sites, "north")["bridge"] == "up", SLOW_S)
    until(lambda: sites.s2m3("north", "status", expect=None)["tasks"].keys() == {"classify"}, SLOW_S)
    until(lambda: serves(sites, "north", "classify"), SLOW_S)
    assert sites.ask("north", 1, "classify") == ["missile"]
    own = f"sites/north/{P}"
    until(lambda: sites.kept("core", own) == sites.kept("north", P), SLOW_S)
    until(lambda: sites.events("core", own) == sites.events("north", P), SLOW_S)
    told_events = b"".join(sites.events("core", own))
    assert all(word in told_events for word in (b"device_dead", b"device_online", b"task_deployed"))
