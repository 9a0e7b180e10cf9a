"""Scenarios by name: those of the library, and files.

Owns the checks between a scenario and the tasks that it names. A scenario that it returns can be played.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from broker.files import bad_field, load_spec
from broker.protocol.errors import BadFile
from broker.protocol.specs import describe
from s2m3 import scenarios
from s2m3.testbed.replay import reference
from s2m3.testbed.replay.scenario import MODULE, STANDBY, WITHOUT, Scenario


def load_scenario(name: str, broker: str | None = None) -> Scenario:
    """Read a scenario by its name in the library or by its path; ``broker`` replaces its own.

    Raises:
        BadFile: there is no such scenario, the file is wrong, or this broker can't be used for it.
    """
    if name in scenarios.names():
        path = scenarios.path(name)
    elif Path(name).suffix in {".yaml", ".yml"} or Path(name).is_file():
        path = Path(name)
    else:
        known = ", ".join(scenarios.names())
        raise BadFile(file=name, problem="is neither in the library nor a file", fix=f"name a file, or one of: {known}")
    scenario = load_spec(path, Scenario)
    reference.requests_for(scenario.tasks)
    _check_names(path, scenario)
    if broker is None:
        return scenario
    try:
        return Scenario.model_validate(scenario.model_dump() | {"broker": broker})
    except ValidationError as error:
        field, problem = describe(error.errors()[0])
        fix = "leave this scenario out, or take another broker"
        raise BadFile(file=str(path), field=field, problem=f"with --broker {broker}: {problem}", fix=fix) from error


def _check_names(path: Path, scenario: Scenario) -> None:
    """Refuse a fault that names a module or node which the scenario's tasks don't have."""
    specs = reference.specs_of(scenario.tasks, scenario.redundancy)
    modules = {name for spec in specs for name in spec.modules}
    nodes = {name for spec in specs for name in spec.nodes}
    for position, fault in enumerate(scenario.faults):
        way, _, module = fault.target.partition(":")
        if f"{way}:" in {MODULE, STANDBY, WITHOUT} and module not in modules:
            problem, fix = f"its tasks have no module {module}", f"use one of: {', '.join(sorted(modules))}"
            raise bad_field(path, ("faults", position, fault.kind), problem=problem, fix=fix)
        if fault.when and fault.when.node and fault.when.node not in nodes:
            problem, fix = f"its tasks have no node {fault.when.node}", f"use one of: {', '.join(sorted(nodes))}"
            raise bad_field(path, ("faults", position, "when", "node"), problem=problem, fix=fix)
