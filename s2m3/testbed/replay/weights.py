"""The weights of a scenario's tasks on this machine, on which its agents run.

Owns where they are looked up, and the error if they aren't here. Reads the disk, never the network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from broker.files import bad_field
from broker.protocol.errors import ModuleRefused
from broker.protocol.specs import ModuleSpec, Source
from edge_agent.modules.weights import exports, hub
from edge_agent.modules.weights.allowed import allow, allowed
from edge_agent.modules.weights.packaged import is_here, path_of
from s2m3.catalogue import load_tasks
from s2m3.reference.auto_numbers import counted
from s2m3.testbed.replay.scenario import Scenario


@contextmanager
def weights_of(scenario: Scenario) -> Iterator[None]:
    """The time in which this process loads weights as the agents of a scenario do."""
    before, rules = os.environ.get(hub.DIRECTORY_VARIABLE), allowed()
    if scenario.models is not None:
        os.environ[hub.DIRECTORY_VARIABLE] = scenario.models
    allow(scenario.weights)
    try:
        yield
    finally:
        allow(rules)
        os.environ.pop(hub.DIRECTORY_VARIABLE, None)
        if before is not None:
            os.environ[hub.DIRECTORY_VARIABLE] = before


def require_weights(scenario: Scenario) -> None:
    """Refuse a task whose weights this machine lacks, and may not fetch by their URL; raises BadFile."""
    with weights_of(scenario):
        exported = exports.sizes(hub.models_directory()) if scenario.engine == "onnx" else {}
        for name in scenario.tasks:
            (written,) = load_tasks(name, counted)
            for module_name, module in written.spec.modules.items():
                why = None if module.key in exported else _why_missing(module)
                if why is not None:
                    fix = "name this machine's models directory in the scenario, models: DIR, or get them first"
                    place = ("modules", module_name, "source")
                    raise bad_field(written.file, place, problem=f"this machine lacks {why}", fix=fix)


def _why_missing(module: ModuleSpec) -> str | None:
    """The weights that are missing of a module, where none of its variants is here; None if they are here."""
    if module.source is None or any(_is_here(each.source, "onnx") for each in module.variants):
        return None
    if _is_here(module.source, module.engine):
        return None
    try:
        if module.source.url is not None:
            allowed().check_url(module.source.url)
        elif module.source.hub is None:
            path_of(module.source)
    except ModuleRefused as error:
        return f"the weights {module.source}: {error}"
    return f"the weights {module.source}"


def _is_here(source: Source, engine: str) -> bool:
    """Whether a source's files are here, or at a URL from which they may be fetched."""
    try:
        if source.url is not None:
            allowed().check_url(source.url)
            return True
        if engine == "onnx" and source.hub is not None:
            found = hub.repository(source)
            return any(found.cached(file) is not None for file in ("model.onnx", exports.MANIFEST))
    except ModuleRefused:
        return False
    return is_here(source)
