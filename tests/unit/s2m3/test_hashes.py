"""The hashes that make checks are of the packages that this project names, at the versions that it is tested with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
UNHASHED = {"s2m3", "torch"}
EXTRAS = {
    "hashes-pocket.txt": ("agent", "camera", "embedded", "export", "http", "metrics", "onnx", "pocket"),
    "hashes-test.txt": ("test", "bench", "exact", "int8"),
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(file: str) -> dict[str, str]:
    """Package -> version, of the lines that name one."""
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;]+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    return {normal(name): version for name, version in found}


@pytest.mark.parametrize("file", EXTRAS)
def test_every_package_has_hashes_and_the_version_of_the_constraints(file: str) -> None:
    constraints, hashed = versions("constraints.txt"), versions(file)
    assert {name: version for name, version in hashed.items() if constraints.get(name, version) != version} == {}
    blocks = re.split(r"\n(?=\S)", (ROOT / file).read_text(encoding="utf-8"))
    assert [block.partition(" ")[0] for block in blocks if "--hash=sha256:" not in block] == []


@pytest.mark.parametrize("file", EXTRAS)
def test_every_dependency_of_this_project_has_hashes(file: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = project["dependencies"] + [each for e in EXTRAS[file] for each in project["optional-dependencies"][e]]
    wanted = {normal(re.split(r"[^\w.-]", each, maxsplit=1)[0]) for each in named} - UNHASHED
    assert wanted - versions(file).keys() == set(), "run scripts/hashes"


def test_what_a_first_run_installs_is_what_the_tests_run_with() -> None:
    assert versions("hashes-pocket.txt").items() <= versions("hashes-test.txt").items()
