"""A module whose weights are mapped from a file computes no more after that file was written to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from broker.protocol.errors import ModuleRefused
from edge_agent.modules import load
from edge_agent.modules.weights import hub, mapped
from edge_agent.runtime.runner import Runner
from s2m3.reference import random_weights, zoo
from tests.builders import module

HEAD = "local/clip-b16-linear"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "weights"
    found.write_bytes(b"first")
    return found


def test_a_file_is_noted_once_in_a_load_and_never_outside_of_one(file: Path) -> None:
    mapped.note(file)
    with mapped.noted() as files:
        mapped.note(file)
        mapped.note(file)
        with pytest.raises(OSError, match="No such file"):
            mapped.note(file.with_name("gone"))
    mapped.note(file.with_name("gone"))
    assert set(files) == {file}


@pytest.mark.parametrize("content", [b"other", b""])
def test_a_written_file_is_refused_and_one_that_was_replaced_or_removed_is_not(file: Path, content: bytes) -> None:
    with mapped.noted() as files:
        mapped.note(file)
    after = file.stat().st_mtime_ns + 1
    with file.open("r+b") as first:
        other = file.with_name("other")
        other.write_bytes(b"other")
        other.replace(file)
        mapped.check(files.values())
        file.unlink()
        mapped.check(files.values())
        first.truncate(0)
        first.write(content)
        first.flush()
        os.utime(first.fileno(), ns=(after, after))
    with pytest.raises(ModuleRefused, match=f"{file} was overwritten while its module was in use: copy new files"):
        mapped.check(files.values())


def test_a_checkpoint_that_was_overwritten_while_torch_serves_it_gives_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(tmp_path))
    random_weights.write(zoo.published(HEAD), tmp_path, changes={"config.json": {"width": 8, "labels": 3}})
    loaded = load(module("head", 10**6, family="heads.linear", source={"hub": HEAD, "part": "linear"}))
    (given,) = loaded.passes[None].steps.sample() or ()
    assert Runner().run(loaded, [given]).answer
    os.truncate(tmp_path / HEAD / "model.safetensors", 0)
    for _ in range(2):
        with pytest.raises(ModuleRefused, match=r"model\.safetensors was overwritten while its module was in use"):
            Runner().run(loaded, [given])
