"""The library of scenarios in their short forms: real processes, real faults, every expectation holds.

Scenarios of one make share a site: each puts it back into order before it begins. The long forms are for
``s2m3 replay``, with nothing shared.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest

from broker.protocol.messages import OrchestratorState
from s2m3 import scenarios
from s2m3.cli.main import main
from s2m3.testbed.observer import Observer
from s2m3.testbed.replay.library import load_scenario
from s2m3.testbed.replay.report import report
from s2m3.testbed.replay.run import play
from s2m3.testbed.replay.scenario import Scenario
from s2m3.testbed.replay.stage import Stage, make_of
from tests.patience import PATIENCE_S

THROUGH_THE_COMMAND = "hung-front-door"  # alone of its make, so it costs no site more
ELSEWHERE = {"mixed-engines"}  # test_mixed_engines, which makes its exports

COME_BACK_S = PATIENCE_S  # the broker, and all its clients
LONG = {
    "broker-away",
    "broker-restart-gently-persistent",
    "deadly-request-supervised",
    "device-joins",  # test_own_site lets one join, too
    "full-disk",  # a disk without room: contract tests of the agent's loads
    "flapping-device",  # killed-again-after-rejoin, and simulated in test_reconcile
    "hung-pass",
    "leader-hung",
    "leader-killed",
    "second-front-door",
    "stalled-load",
    "two-devices-cut-mid-request",
}  # CI has an end


def by_make() -> list[str]:
    """The library's names, those that can share a site one after the other.

    What may move nothing comes first: devices that died before are on probation, and placed better once it is over.
    """
    found = {name: load_scenario(name) for name in scenarios.names() if name not in {THROUGH_THE_COMMAND, *ELSEWHERE}}
    return sorted(found, key=lambda name: (repr(make_of(found[name])), found[name].expect.moves != 0, name))


class Stages:
    """The one site that runs now; a scenario of another make gets a new one."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._stage: Stage | None = None

    def get(self, scenario: Scenario) -> Stage:
        """A site for this scenario."""
        if self._stage is None or not self._stage.fits(scenario):
            self._stage = None
            self._stack.close()
            self._stage = self._stack.enter_context(Stage(scenario))
        return self._stage


@pytest.fixture(scope="module")
def stages() -> Iterator[Stages]:
    with ExitStack() as stack:
        yield Stages(stack)


def test_a_site_whose_broker_forgot_its_tasks_comes_back_into_order(stages: Stages) -> None:
    """The orchestrator says specs last after an outage; a scenario that ends before takes them along."""
    stage = stages.get(load_scenario(by_make()[0]).shortened())  # the next test's, so it costs no site more
    stage.restore(standby=False)
    stage.site.kill_broker()
    stage.site.start_broker()
    restarted_s = time.monotonic()
    led_again = partial(any_leader_since, since_s=restarted_s)
    assert stage.site.wait_for(led_again, COME_BACK_S)
    stage.restore(standby=False)
    complete = {task for task, route in stage.observer.routes.items() if route.complete}
    assert {spec.task for spec in stage.specs} <= complete


def any_leader_since(seen: Observer, since_s: float) -> bool:
    """Whether an orchestrator published after that moment that it leads."""
    said = (sighting for sighting in seen.sightings if sighting.at_s > since_s)
    return any(isinstance(each.message, OrchestratorState) and each.message.online for each in said)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in by_make()]
)
def test_what_a_scenario_expects_holds(stages: Stages, name: str) -> None:
    scenario = load_scenario(name).shortened()
    recording = play(scenario, stages.get(scenario))
    found = report(recording, scenario.expect)
    assert found.ok, json.dumps(asdict(found), indent=1)
    assert found.sent == found.answered + sum(found.errors.values()) + found.lost
    assert [fault.kind for fault in found.faults] == [fault.kind for fault in scenario.timeline()]


def test_the_command_prints_one_document_and_draws(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "timeline.png"
    code = main(["replay", "--short", "--json", "--plot", str(picture), THROUGH_THE_COMMAND])
    document = json.loads(capfd.readouterr().out)
    assert code == 0, document
    assert document["ok"]
    assert document["sent"] == document["answered"] > 0
    assert [fault["kind"] for fault in document["faults"]] == ["pause"]
    assert picture.read_bytes().startswith(b"\x89PNG")
