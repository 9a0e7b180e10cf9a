"""Which of four processes runs which file of tests, for pytest-xdist.

Two run the tests that start sites, and mostly wait: no more sites at once than there are cores. The third runs those
that start brokers and no site, which wait, too, and then what is left. The last runs those that mostly compute, with a
lower priority: it takes the time that the others leave, and no test with a site is slower for it. These two end when
only sites are left. With three processes the last runs all but the sites, and with fewer, each runs what comes next.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import pytest
from xdist.scheduler.loadfile import LoadFileScheduling
from xdist.workermanage import WorkerController

Kind = Literal["sites", "brokers", "computing"]
BROKERS = (
    "tests/contract/",
    "tests/acceptance/test_broker_check.py",
    "tests/acceptance/test_core.py",
    "tests/acceptance/test_forbidden_actions.py",
    "tests/faults/test_failed_connections.py",
    "tests/faults/test_mqtt_traps.py",
    "tests/faults/test_reconnect.py",
)
COMPUTING = ("tests/unit/", "tests/properties/", "tests/equivalence/", "tests/fuzz/")
FIRST = ("tests/faults/test_scenarios.py", "tests/contract/test_orchestrator_service.py")
"""Files that take so long that nothing else would be left for the other processes if they came last."""
WITH_SITES = 2  # processes
NICENESS = 5


class Distribution(LoadFileScheduling):  # type: ignore[misc] # pytest-xdist has no types
    """Gives each process the next file that it should run."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        for kinds in _kinds(node.workerinput):
            if mine := [scope for scope in self.workqueue if _kind(scope) in kinds]:
                self.workqueue.move_to_end(min(mine, key=lambda scope: scope not in FIRST), last=False)
                super()._assign_work_unit(node)
                return
        if not node.shutting_down:
            node.shutdown()


def yield_to_sites(config: pytest.Config) -> None:
    """Lower the priority of this process if it is the one that computes."""
    process = getattr(config, "workerinput", {"workercount": 0})
    if process["workercount"] > WITH_SITES and process["workerid"] == f"gw{process['workercount'] - 1}":
        os.nice(NICENESS)


def _kind(scope: str) -> Kind:
    """The kind of a file of tests."""
    return "computing" if scope.startswith(COMPUTING) else "brokers" if scope.startswith(BROKERS) else "sites"


def _kinds(process: dict[str, Any]) -> tuple[set[Kind], ...]:
    """The kinds of files that a process runs, in the order in which it takes them."""
    count, number = int(process["workercount"]), int(process["workerid"].removeprefix("gw"))
    if count <= WITH_SITES:
        return ({"sites", "brokers", "computing"},)
    if number < WITH_SITES:
        return {"sites"}, {"brokers"}, {"computing"}
    return ({"computing"}, {"brokers"}) if number == count - 1 else ({"brokers"}, {"computing"})
