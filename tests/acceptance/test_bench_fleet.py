"""Twenty simulated devices on real sessions, against a real Mosquitto and a real orchestrator."""

from __future__ import annotations

import json

import pytest

from s2m3.bench.fleet import schedule
from s2m3.cli.main import main

PROMISED = {
    *("devices", "tasks", "all_routed_s", "orchestrator_core_share", "orchestrator_rss_mb"),
    *("broker_core_share", "rerouted_s"),
}
QUICK = ["bench", "fleet", "--devices", "20", "--tasks", "3", "--seconds", "2", "--births", "1", "--json"]


def test_a_simulated_fleet_is_served_and_survives_deaths_a_broker_restart_and_a_power_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2m3.bench.fleet.measure.QUIET_S", 4.0)
    monkeypatch.setattr("s2m3.bench.fleet.measure.WATCHED_S", 2.0)
    monkeypatch.setattr("s2m3.bench.fleet.measure.REVIEWED_S", 5.0)
    monkeypatch.setattr("s2m3.bench.fleet.measure.DEATHS", 1)
    monkeypatch.setattr(schedule, "LATE_INTERVALS", 30.0)  # the machine may be busy
    assert main(QUICK) == 0, capsys.readouterr().out
    found = json.loads(capsys.readouterr().out)
    assert found.keys() >= PROMISED
    assert (found["devices"], found["tasks"]) == (20, 3)
    assert found["all_routed_s"] > 0
    assert 0 < found["orchestrator_core_share"] <= 1.5
    assert found["orchestrator_rss_mb"] > 10
    assert found["bytes_per_s"]["from_devices"] > 20 * 100
    assert found["rerouted_s"] > 0
    assert found["rerouted_without_standby_s"] > found["load_s"]
    assert found["broker_restart"]["moves"] == found["broker_restart"]["loads"] == 0
    assert found["power_up"]["needless_moves"] == 0
    assert found["leaders"] == 2, "the one of the power-up is the second"


def test_a_run_whose_simulator_was_late_is_invalid(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s2m3.bench.fleet.measure.QUIET_S", 1.0)
    monkeypatch.setattr(schedule, "LATE_INTERVALS", 0.0)  # every heartbeat leaves a moment after it was due
    assert main([*QUICK, "--steady"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["valid"] is False
    assert found["why_not"][0].startswith("invalid: the simulator itself sent ")
