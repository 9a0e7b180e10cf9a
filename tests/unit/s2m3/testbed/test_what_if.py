"""A fleet and a scenario in which a device dies, or one more comes."""

from __future__ import annotations

from functools import partial

import pytest

from broker.protocol.errors import BadFile
from broker.protocol.specs import FleetSpec
from s2m3.testbed.replay.scenario import Scenario
from s2m3.testbed.what_if import changed_fleet, changed_scenario
from tests.builders import device

FLEET = FleetSpec(source="gw-a", devices=(device("gw-a"), device("gw-b", 200), device("gw-b-2")))
SCENARIO = Scenario.model_validate(
    {
        "name": "a site",
        "fleet": [{"id": "gw-a"}, {"id": "gw-b", "memory": "64MiB", "engine": "onnx"}],
        "tasks": ["pocket/classify"],
        "load": {"rate_per_s": 1, "duration_s": 10, "deadline_s": 5},
        "faults": [{"at_s": 1, "pause": "gw-a", "for_s": 1}],
    }
)


def test_a_fleet_loses_a_device_and_gets_one_more_like_another() -> None:
    assert changed_fleet(FLEET, [], []) == FLEET
    assert [each.id for each in changed_fleet(FLEET, ["gw-b"], []).devices] == ["gw-a", "gw-b-2"]
    found = changed_fleet(FLEET, ["gw-b"], ["gw-b", "gw-b"])
    assert [(each.id, each.memory_bytes) for each in found.devices[2:]] == [("gw-b-3", 200), ("gw-b-4", 200)]


def test_in_a_scenario_the_device_dies_and_one_more_joins_and_its_own_faults_come_too() -> None:
    died = changed_scenario(SCENARIO, ["gw-b"], [])
    assert [(each.at_s, each.kind, each.target) for each in died.timeline()] == [
        (1, "pause", "gw-a"),
        (3, "kill", "gw-b"),
    ]
    assert died.name == "a site: gw-b dies"
    more = changed_scenario(SCENARIO, [], ["gw-b"])
    assert [(each.at_s, each.kind, each.target) for each in more.timeline()[1:]] == [(3, "join", "gw-b-2")]
    assert more.joining == {"gw-b-2"}
    assert more.fleet[2] == SCENARIO.fleet[1].model_copy(update={"id": "gw-b-2"})
    both = changed_scenario(SCENARIO, ["gw-a", "gw-b"][1:], ["gw-a"])
    assert [(each.at_s, each.kind) for each in both.timeline()[1:]] == [(3, "kill"), (6, "join")]


@pytest.mark.parametrize(
    ("without", "more", "sentence"),
    [
        (["gw-x"], [], "--without: gw-x is not a device of the fleet; use one of: gw-a, gw-b"),
        ([], ["gw-x"], "--one-more: gw-x is not a device of the fleet; use one of"),
        (["gw-b", "gw-b"], [], "--without: gw-b is named twice"),
    ],
)
def test_what_cant_be_is_one_line(without: list[str], more: list[str], sentence: str) -> None:
    for change in (partial(changed_fleet, FLEET), partial(changed_scenario, SCENARIO)):
        with pytest.raises(BadFile) as refused:
            change(without, more)
        assert str(refused.value).startswith(sentence)


def test_a_fleet_keeps_the_device_where_requests_start_and_a_scenario_one_device() -> None:
    with pytest.raises(BadFile, match="--without: requests start at gw-a, the fleet's source; name another source"):
        changed_fleet(FLEET, ["gw-a"], [])
    with pytest.raises(BadFile, match="--without: no device would be left"):
        changed_scenario(SCENARIO, ["gw-a", "gw-b"], [])
