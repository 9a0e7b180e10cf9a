"""The control plane doesn't import the extras, which a small box lacks, and help imports no service."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest

from s2m3.cli.bench import COMMANDS as BENCHES
from s2m3.cli.main import COMMANDS
from tests.patience import run_python

HEAVY = ("torch", "transformers", "tokenizers", "PIL", "iotcore", "huggingface_hub")
SLOW = {*HEAVY, "numpy", "paho", "pydantic", "pydantic_core", "rich", "safetensors", "structlog", "yaml"}
PROGRAM = """
import contextlib, io, json, sys
sys.modules.update(dict.fromkeys({without!r}))
from s2m3.cli.main import main
printed = {{}}
for arguments in {lines!r}:
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        main(arguments.split())
    printed[arguments] = output.getvalue()
print(json.dumps([printed, [name for name, module in sys.modules.items() if module is not None]]))
"""


def run(*lines: str, without: tuple[str, ...] = ()) -> tuple[dict[str, str], set[str]]:
    """The output of the command line in a new process for each of these arguments, and all modules it imports."""
    program = PROGRAM.format(lines=lines, without=without)
    printed, imported = json.loads(run_python(program))
    return printed, set(imported)


@pytest.mark.parametrize("module", ["s2m3.cli.main", "orchestrator.__main__", "edge_agent.__main__", "broker.client"])
def test_the_command_line_starts_without_the_extras(module: str) -> None:
    assert not run_python(f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r})); import {module}")


def test_the_help_of_every_command_needs_none_of_the_extras() -> None:
    lines = [*COMMANDS, *(f"bench {name}" for name in BENCHES)]
    printed, _ = run(*(f"{line} --help" for line in lines), without=HEAVY)
    for line in lines:
        assert printed[f"{line} --help"].startswith(f"usage: s2m3 {line} "), line


def test_help_and_version_import_no_service() -> None:
    printed, imported = run("--help", "--version")
    assert all(f"\n    {name}" in printed["--help"] for name in COMMANDS)
    assert printed["--version"] == f"s2m3 {version('s2m3')}\n"
    assert not SLOW & imported
    ours = {name for name in imported if name.split(".")[0] in {"broker", "edge_agent", "orchestrator", "s2m3"}}
    assert ours == {
        *("broker", "broker.arguments", "broker.protocol", "broker.protocol.errors", "broker.protocol.sizes"),
        *("s2m3", "s2m3.cli", "s2m3.cli.commands", "s2m3.cli.main"),
    }


def test_the_help_of_a_command_imports_no_other_command() -> None:
    _, imported = run("status --help")
    assert {name for name in imported if name.startswith("s2m3.cli.")} == {
        *("s2m3.cli.arguments", "s2m3.cli.commands", "s2m3.cli.main", "s2m3.cli.output", "s2m3.cli.status"),
        *("s2m3.cli.sites", "s2m3.cli.status_sources"),
    }


def test_the_list_of_models_is_read_without_torch() -> None:
    printed, imported = run("models list --json")
    assert len(json.loads(printed["models list --json"])) > 20
    assert not {"torch", "transformers"} & imported


@pytest.mark.parametrize(
    "module", ["s2m3.dashboard.server", "s2m3.http.server", "s2m3.metrics.service", "broker.client"]
)
def test_a_process_that_sees_no_arrays_has_no_numpy(module: str) -> None:
    assert run_python(f"import sys, {module}; print('numpy' in sys.modules)") == "False\n"
