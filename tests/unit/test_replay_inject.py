"""What the injector does to a site for each way of a restart."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from s2m3.replay.inject import Injector
from s2m3.replay.scenario import Scenario
from s2m3.site import ORCHESTRATOR


class CalledSite:
    """A site that only says what was asked of it."""

    def __init__(self, enough: int) -> None:
        self.calls: list[str] = []
        self.done = threading.Event()
        self._enough = enough

    def __getattr__(self, name: str) -> Any:
        def call(*names: str) -> None:
            self.calls.append(" ".join((name, *names)))
            if len(self.calls) == self._enough:
                self.done.set()

        return call


@pytest.mark.parametrize(
    ("fault", "calls"),
    [
        ({"restart": "broker"}, ["kill_broker", "start_broker"]),
        ({"restart": "broker", "gently": True}, ["end_broker", "start_broker"]),
        ({"restart": "broker", "gently": False}, ["kill_broker", "start_broker"]),
        ({"restart": "orchestrator"}, ["kill orchestrator", "start_orchestrator orchestrator"]),
        ({"restart": "orchestrator", "gently": True}, ["end orchestrator", "start_orchestrator orchestrator"]),
    ],
)
def test_a_restart_kills_unless_it_is_gentle_and_starts_again(
    fault: dict[str, Any], calls: list[str], patience_s: float
) -> None:
    scenario = Scenario.model_validate(
        {
            "name": "a restart",
            "fleet": [{"id": "gw-a"}],
            "tasks": ["pocket/classify"],
            "load": {"rate_per_s": 1, "duration_s": 1, "deadline_s": 1},
            "faults": [{"at_s": 0, "for_s": 0.01, **fault}],
        }
    )
    site = CalledSite(len(calls))
    injector = Injector(cast("Any", SimpleNamespace(site=site, leader=ORCHESTRATOR, others=())), scenario)
    injector.start(began_s=0.0)
    assert site.done.wait(patience_s)
    injector.stop()
    assert (site.calls, injector.troubles) == (calls, [])
    assert [(done.kind, done.target, done.for_s) for done in injector.done] == [("restart", fault["restart"], 0.01)]
