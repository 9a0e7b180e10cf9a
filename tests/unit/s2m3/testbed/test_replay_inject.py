"""The injector's calls to a site, for each way of a restart."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from broker.protocol.errors import ErrorCode
from s2m3.catalogue import load_task
from s2m3.testbed.faulty_agent import DEADLY
from s2m3.testbed.replay.inject import Injector
from s2m3.testbed.replay.library import demo_requests
from s2m3.testbed.replay.scenario import Scenario
from s2m3.testbed.site import ORCHESTRATOR


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


def injected(site: object, *faults: dict[str, Any], fleet: Any = ({"id": "gw-a"},), client: object = None) -> Injector:
    scenario = Scenario.model_validate(
        {
            "name": "some faults",
            "fleet": fleet,
            "tasks": ["pocket/classify"],
            "load": {"rate_per_s": 1, "duration_s": 10, "deadline_s": 1},
            "faults": list(faults),
        }
    )
    return Injector(cast("Any", SimpleNamespace(site=site, leader=ORCHESTRATOR, others=(), client=client)), scenario)


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
    site = CalledSite(len(calls))
    injector = injected(site, {"at_s": 0, "for_s": 0.01, **fault})
    injector.start(began_s=0.0)
    assert site.done.wait(patience_s)
    injector.stop()
    assert (site.calls, injector.troubles) == (calls, [])
    assert [(done.kind, done.target, done.for_s) for done in injector.done] == [("restart", fault["restart"], 0.01)]


@pytest.mark.parametrize(
    ("fault", "calls"),
    [
        ({}, ["kill gw-a"]),
        ({"gently": True}, ["end gw-a"]),
        ({"gently": True, "for_s": 0.01}, ["end gw-a", "start_agent gw-a"]),
        ({"for_s": 0.01}, ["kill gw-a", "start_agent gw-a"]),
    ],
)
def test_a_device_is_switched_off_and_on_again_after_its_time_if_it_has_one(
    fault: dict[str, Any], calls: list[str], patience_s: float
) -> None:
    site = CalledSite(len(calls))
    injector = injected(site, {"at_s": 0, "switch_off": "gw-a", **fault})
    injector.start(began_s=0.0)
    assert site.done.wait(patience_s)
    injector.stop()
    assert (site.calls, injector.troubles) == (calls, [])
    assert [(done.kind, done.target, done.for_s) for done in injector.done] == [
        ("switch_off", "gw-a", fault.get("for_s"))
    ]


def test_a_deadly_request_is_a_copy_of_one_of_the_load_which_stays_as_it_is(patience_s: float) -> None:
    sent: list[bytes] = []
    done = threading.Event()

    def request(_: str, inputs: Any, **__: float) -> Any:
        sent.append(inputs["image"].data)
        done.set()
        return SimpleNamespace(result=SimpleNamespace(error=SimpleNamespace(code=ErrorCode.MODULE_FAILED)))

    injector = injected(SimpleNamespace(), {"at_s": 0, "crash": "classify"}, client=SimpleNamespace(request=request))
    injector.start(began_s=0.0)
    assert done.wait(patience_s)
    injector.stop()
    (first, *_) = demo_requests(load_task("pocket/classify"))
    assert sent == [first.inputs["image"].data + DEADLY]
    assert injector.troubles == []


def test_a_device_that_joins_is_started(patience_s: float) -> None:
    site = CalledSite(1)
    injector = injected(site, {"at_s": 0, "join": "gw-b"}, fleet=[{"id": "gw-a"}, {"id": "gw-b"}])
    injector.start(began_s=0.0)
    assert site.done.wait(patience_s)
    injector.stop()
    assert (site.calls, injector.troubles) == (["start_agent gw-b"], [])


@pytest.mark.parametrize(
    ("fault", "trouble"),
    [
        ({"restart": "broker", "when": {"online": "killed"}}, "no device is killed"),
        ({"start": "killed"}, "no killed device is down"),
        ({"slow": "gw-a", "factor": 2, "for_s": 1}, "gw-a is not there"),
    ],
)
def test_a_fault_that_cannot_come_is_told_and_the_next_ones_come(
    fault: dict[str, Any], trouble: str, patience_s: float
) -> None:
    class Site(CalledSite):
        running = ("gw-a",)

        def pid(self, name: str) -> int:
            raise IndexError(f"{name} is not there")

    site = Site(2)
    injector = injected(site, {"at_s": 0, **fault}, {"at_s": 0, "for_s": 0.01, "restart": "broker"})
    injector.start(began_s=0.0)
    assert site.done.wait(patience_s)
    injector.stop()
    assert site.calls == ["kill_broker", "start_broker"]
    (told,) = injector.troubles
    assert trouble in told


def test_a_load_that_ends_before_its_faults_did_not_show_them() -> None:
    injector = injected(CalledSite(1), {"at_s": 9, "restart": "broker"})
    injector.start(began_s=time.monotonic())
    assert not injector.finished
    injector.stop()
    assert injector.troubles == ["the load was over before all faults were"]
