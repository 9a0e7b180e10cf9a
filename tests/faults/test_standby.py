"""Real processes, a real Mosquitto: a device is killed whose modules have warm standbys."""

from __future__ import annotations

from broker.protocol.messages import Assignment, Heartbeat
from edge_agent.config import AgentConfig
from s2m3.catalogue import load_task
from s2m3.reference.pictures import REQUESTS
from s2m3.testbed.observer import Observer
from s2m3.testbed.site import Site
from tests.patience import PATIENCE_S

START_S = 3 * PATIENCE_S
ANSWER_S = 2 * PATIENCE_S
ASKED = next(request for request in REQUESTS if request.task == "classify")


def roles(seen: Observer) -> dict[str, dict[str, str]]:
    """The modules assigned to each living device: device -> module key -> role."""
    return {
        device: {assigned.spec.key: assigned.role for assigned in said.modules}
        for device, said in seen.assignments.items()
        if seen.devices[device].status == "online"
    }


def covered(seen: Observer) -> bool:
    """Whether each module has a standby, loaded."""
    told = roles(seen)
    active = {key for keys in told.values() for key, role in keys.items() if role == "active"}
    warm = {
        key
        for device, keys in told.items()
        for key, role in keys.items()
        if role == "standby"
        and device in seen.heartbeats
        and key in seen.heartbeats[device].modules
        and seen.heartbeats[device].modules[key].state == "ready"
    }
    return bool(active) and active == warm


def test_a_killed_device_is_replaced_by_its_standby_through_a_route_and_nothing_is_loaded() -> None:
    configs = [AgentConfig.model_validate({"id": name, "memory": "160MiB"}) for name in ("gw-a", "gw-b")]
    with Site("mosquitto", configs) as site:
        seen, camera = site.observer, site.client
        site.serve([load_task("pocket/classify")])
        # 1. one device serves, the other holds a warm copy of all, and no route names it
        route = seen.routes["classify"]
        assert seen.wait_for(covered, START_S), roles(seen)
        (victim,) = {device.device for node in route.nodes.values() for device in node.devices}
        (heir,) = {"gw-a", "gw-b"} - {victim}
        assert set(roles(seen)[heir].values()) == {"standby"}
        loads = {key: held.load_s for key, held in seen.heartbeats[heir].modules.items()}

        # 2. the device dies with requests on their way
        futures = [camera.submit(ASKED.task, ASKED.inputs, deadline_s=ANSWER_S) for _ in range(6)]
        before = len(seen.sightings)
        site.kill(victim)
        assert seen.wait_for(lambda seen: seen.routes["classify"].front_door == (heir,), START_S), seen.routes
        assert seen.routes["classify"].complete
        assert [future.result(ANSWER_S + 5).ok for future in futures] == [True] * len(futures)
        assert seen.wait_for(lambda seen: set(roles(seen)[heir].values()) == {"active"}, START_S)
        assert seen.wait_for(
            lambda seen: seen.heartbeats[heir].generation == seen.routes["classify"].generation, START_S
        )

        # 3. the heir loaded nothing: it never reported a copy that wasn't ready, nor another load
        reports = [s.message for s in seen.sightings[before:] if s.id == heir and isinstance(s.message, Heartbeat)]
        assert reports
        assert {held.state for report in reports for held in report.modules.values()} == {"ready"}
        assert all({key: held.load_s for key, held in report.modules.items()} == loads for report in reports)
        told = [s.message for s in seen.sightings[before:] if s.id == heir and isinstance(s.message, Assignment)]
        assert {key for said in told for key in (assigned.spec.key for assigned in said.modules)} == loads.keys()
