"""Weights that end every process that loads them: two devices at most, and the task says why. With real processes."""

from __future__ import annotations

from edge_agent.config import AgentConfig
from s2m3.catalogue import load_task
from s2m3.testbed.site import Site
from tests.patience import PATIENCE_S

DEVICES = ("gw-a", "gw-b", "gw-c")


def test_a_module_whose_load_crashes_its_process_takes_two_devices_and_not_the_third() -> None:
    spec = load_task("pocket/classify")
    deadly = spec.modules["efficientnet-lite0/encoder"].key
    agents = [AgentConfig.model_validate({"id": name, "memory": "200MiB", "cache": 0}) for name in DEVICES]
    with Site("mosquitto", agents, inner_faults=True, supervised=True) as site:
        site.require(lambda seen: seen.leads and seen.has_heartbeats(DEVICES), 4 * PATIENCE_S, "they are not online")
        site.make_deadly(deadly)
        site.observer.deploy([spec], 0.0)

        def is_refused(_: object) -> bool:
            route = site.observer.routes.get(spec.task)
            return route is not None and "devices died while they loaded" in (route.unavailable or "")

        site.require(is_refused, 4 * PATIENCE_S, "the module is tried on and on")
        assert site.wait_for(lambda _: len(set(site.crashes)) == 2, PATIENCE_S), site.crashes
        site.require(lambda seen: seen.has_heartbeats(DEVICES), 4 * PATIENCE_S, "they didn't come back")
        assert not site.wait_for(lambda seen: not is_refused(seen), 5.0), "both say that it was the load"
        assert len(site.crashes) == 2, site.crashes
