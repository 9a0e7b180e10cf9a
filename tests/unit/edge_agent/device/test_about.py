"""The description of a machine in a device's birth."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.device import about as about_module
from edge_agent.device.about import about


def test_it_names_the_version_the_machine_and_the_installed_engines() -> None:
    found = about()
    assert all((found.version, found.host, found.machine, found.cpu, found.python))
    assert any(engine.startswith("torch ") for engine in found.engines)


@pytest.mark.parametrize(
    ("text", "cpu"),
    [
        ("processor : 0\nmodel name\t: Some Processor 3000\n", "Some Processor 3000"),
        ("processor\t: 0\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B\n", "BCM2835"),
    ],
)
def test_the_processor_has_the_name_that_the_system_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, cpu: str
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(about_module, "CPU_INFO", tmp_path / "cpuinfo")
    assert about().cpu.startswith(f"{cpu}, ")


def test_a_system_without_that_file_has_its_architecture_as_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(about_module, "CPU_INFO", tmp_path / "none")
    assert about().cpu
