"""The exit codes of ``s2m3 replay`` and ``s2m3 soak``, and what they refuse before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from s2m3.bench import soak
from s2m3.cli.main import main
from s2m3.testbed.replay import run
from s2m3.testbed.replay.library import load_scenario
from s2m3.testbed.replay.recording import Outcome, Recording
from s2m3.testbed.replay.scenario import Scenario
from s2m3.testbed.replay.timeline import Injected
from s2m3.testbed.site import SiteFailed

Answering = Callable[[list[Outcome]], None]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Answering:
    """Replays without a site: each records these outcomes."""

    @contextmanager
    def stage(*_: object) -> Iterator[Any]:
        site = SimpleNamespace(running=(), broker_pid=None)
        yield SimpleNamespace(site=site, observer=SimpleNamespace(heartbeats={}), fits=lambda _: False)

    def answer(outcomes: list[Outcome]) -> None:
        def play(scenario: Scenario, _: object) -> Recording:
            return Recording(scenario.name, scenario.seed, 0.0, 1.0, outcomes, [], [], 0)

        for module in (run, soak):
            monkeypatch.setattr(module, "Stage", stage)
            monkeypatch.setattr(module, "play", play)

    return answer


RIGHT = Outcome("classify", 0.0, 0.1, "right")
LOST = Outcome("classify", 0.2, 9.0, "lost")
WRONG = Outcome("classify", 0.2, 0.3, "wrong")


@pytest.mark.parametrize(("outcomes", "code"), [([RIGHT], 0), ([LOST, RIGHT], 1), ([WRONG, RIGHT], 1)])
def test_a_replay_ends_with_1_when_an_expectation_does_not_hold(
    answering: Answering, capsys: pytest.CaptureFixture[str], outcomes: list[Outcome], code: int
) -> None:
    answering(outcomes)
    assert main(["replay", "--json", "slow-device"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is (code == 0)
    assert main(["replay", "--json", "slow-device", "hostile-messages"]) == code
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_a_site_that_does_not_come_up_does_not_hold(
    answering: Answering, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_stage(*_: object) -> None:
        raise SiteFailed("no broker")

    answering([RIGHT])
    monkeypatch.setattr(run, "Stage", no_stage)
    assert main(["replay", "--json", "slow-device"]) == 1
    assert json.loads(capsys.readouterr().out)["why_not"][0] == "no broker"


def test_goals_that_were_not_measured_end_with_1(answering: Answering, capsys: pytest.CaptureFixture[str]) -> None:
    answering([RIGHT])
    assert main(["replay", "--goals", "--json", "slow-device"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert all(each["ok"] for each in found["replays"] if each["name"].startswith("goal"))
    assert not all(goal["holds"] for goal in found["goals"])


@pytest.mark.parametrize("outcomes", [[LOST, RIGHT], [WRONG, RIGHT], [RIGHT, RIGHT]])
def test_a_soak_ends_with_1_when_something_was_lost_or_nothing_could_be_judged(
    answering: Answering, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], outcomes: list[Outcome]
) -> None:
    answering(outcomes)
    good = outcomes == [RIGHT, RIGHT]
    assert main(["soak", "--minutes", "1", "--seed", "3", "--json"]) == (0 if good else 1)
    told = capsys.readouterr()
    assert "seed 3:" in told.err
    assert json.loads(told.out)["ok"] is good
    if good:
        monkeypatch.setattr(soak, "_pids", lambda _: {"gw-a": 1})
        assert main(["soak", "--minutes", "1", "--json"]) == 1, "no process lived long enough to be judged"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["replay", "no-such-scenario"], "is neither in the library nor a file"),
        (["replay", "slow-device", "--plot", "timeline.txt"], "must end in .png, .svg or .pdf"),
        (["replay", "slow-device", "--plot", "no-such-folder/timeline.png"], "is in a folder that does not exist"),
        (
            ["replay", "slow-device", "--without", "gw-x"],
            "--without: gw-x is not a device of the fleet; use one of: gw-a",
        ),
        (["replay", "slow-device", "--one-more", "gw-x"], "--one-more: gw-x is not a device of the fleet"),
        (["soak", "--plot", "timeline"], "must end in .png, .svg or .pdf"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_started(
    answering: Answering, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    answering([RIGHT])
    assert main(arguments) == 2
    assert problem in capsys.readouterr().err


def test_what_if_a_device_dies_or_joins_is_a_fault_of_each_scenario_and_is_told_in_words(
    answering: Answering, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering([RIGHT])
    played: list[Scenario] = []

    def play(scenario: Scenario, _: object) -> Recording:
        played.append(scenario)
        faults = [Injected(0.5, "kill", "gw-b")]
        return Recording(scenario.name, scenario.seed, 0.0, 1.0, [RIGHT], faults, [], 0)

    monkeypatch.setattr(run, "play", play)
    assert main(["replay", "slow-device", "hung-device", "--without", "gw-b", "--one-more", "gw-c"]) in {0, 1}
    for name, scenario in zip(("slow-device", "hung-device"), played, strict=True):
        own = load_scenario(name)
        assert scenario.faults[: len(own.faults)] == own.faults
        added = scenario.faults[len(own.faults) :]
        assert [(fault.kind, fault.target) for fault in added] == [("kill", "gw-b"), ("join", "gw-c-2")]
    assert "at 0.50 s, kill gw-b: It served no task: it held nothing; nobody had noticed" in capsys.readouterr().out


def test_a_running_broker_is_reached_with_the_whole_connection_and_its_password_is_not_printed(
    answering: Answering, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    answering([RIGHT])
    stages: list[Any] = []
    real = vars(run)["Stage"]

    def stage(*given: Any) -> Any:
        stages.append(given[2])
        return real(*given)

    monkeypatch.setattr(run, "Stage", stage)
    (tmp_path / "site.yaml").write_text("broker: mqtts://broker:8884\nca: ca.pem\n")
    main(["replay", "slow-device", "--connection", str(tmp_path / "site.yaml")])
    main(["replay", "slow-device", "--broker", "mqtt://operator:s3cret@127.0.0.1:1"])
    main(["replay", "slow-device"])
    assert [each and (each.url, each.ca, each.password) for each in stages] == [
        ("mqtts://broker:8884", tmp_path / "ca.pem", None),
        ("mqtt://127.0.0.1:1", None, "s3cret"),
        None,
    ]
    printed = "".join(capsys.readouterr())
    assert "mqtts://broker:8884" in printed
    assert "s3cret" not in printed
