"""Which of three processes runs which file of tests, for pytest-xdist.

Two run the tests that start sites, brokers and agents, and mostly wait: no more sites at once than there are cores. The
third runs those that mostly compute, with a lower priority: it takes the time that the others leave, and no test with a
site is slower for it. It ends when no such file is left; what is slow for it, one of the others takes over.
With fewer processes, each runs what comes next.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from xdist.scheduler.loadfile import LoadFileScheduling
from xdist.workermanage import WorkerController

COMPUTING = ("tests/unit/", "tests/properties/", "tests/equivalence/", "tests/fuzz/")
FIRST = ("tests/faults/test_scenarios.py",)
"""Files that take so long that nothing else would be left for the other process if they came last."""
NICENESS = 5


class Distribution(LoadFileScheduling):  # type: ignore[misc] # pytest-xdist has no types
    """Gives each process the next file that it should run."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        computes = _computes(node.workerinput)
        mine = [scope for scope in self.workqueue if scope.startswith(COMPUTING) == computes]
        if mine or not computes:
            chosen = min(mine or self.workqueue, key=lambda scope: scope not in FIRST)
            self.workqueue.move_to_end(chosen, last=False)
            super()._assign_work_unit(node)
        elif not node.shutting_down:
            node.shutdown()


def yield_to_sites(config: pytest.Config) -> None:
    """Lower the priority of this process if it is the one that computes."""
    if _computes(getattr(config, "workerinput", {"workercount": 0})):
        os.nice(NICENESS)


def _computes(process: dict[str, Any]) -> bool:
    """Whether this is the process for tests that compute: the last of three or more."""
    count = int(process["workercount"])
    return count > 2 and process["workerid"] == f"gw{count - 1}"
