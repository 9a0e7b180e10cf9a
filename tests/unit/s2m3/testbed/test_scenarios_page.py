"""``s2m3/scenarios/README.md`` says what the format and the report have, and its example is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from s2m3.testbed.replay.recording import FaultReport, Report
from s2m3.testbed.replay.requests import Expected
from s2m3.testbed.replay.scenario import KINDS, Expect, Fault, FleetDevice, Load, Scenario, When

PAGE = (Path(__file__).parents[4] / "s2m3" / "scenarios" / "README.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"[a-z0-9_]+", PAGE))


@pytest.mark.parametrize("model", [Scenario, FleetDevice, Load, Fault, When, Expect])
def test_every_field_of_the_format_is_named(model: type[Scenario]) -> None:
    assert set(model.model_fields) <= NAMED


@pytest.mark.parametrize("part", [Report, FaultReport])
def test_every_field_of_the_report_is_named(part: type[Report]) -> None:
    assert set(part.__dataclass_fields__) <= NAMED


def test_each_table_has_its_fields_and_no_other() -> None:
    fields = Expect.model_fields
    first_cells = [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in PAGE.splitlines() if line.startswith("| `")]
    named = [name for cell in first_cells for name in cell]
    assert sorted(named) == sorted([*KINDS, *fields, *FaultReport.__dataclass_fields__])
    defaults = re.findall(r"^\| `(\w+)` \| (any|\d+|true|false) \|", PAGE, flags=re.MULTILINE)
    said = {name: "any" if field.default is None else str(field.default).lower() for name, field in fields.items()}
    assert dict(defaults) == said


def test_the_examples_are_a_scenario_one_with_own_tasks_and_expected_answers() -> None:
    example, own, expected = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL))
    assert Scenario.model_validate(example).faults
    assert Scenario.model_validate(example | own).requests
    assert Expected.model_validate(expected).answers
