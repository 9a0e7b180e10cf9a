"""The settings of an agent that are other ones than at its last start."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.protocol.messages import About
from edge_agent.config import AgentConfig
from edge_agent.device import last_start
from edge_agent.device.last_start import changes_since
from edge_agent.runtime.accelerator import Accelerator


def config(memory: str | None) -> AgentConfig:
    return AgentConfig.model_validate({"id": "gw-a", "memory": memory})


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (("300MiB", "/a"), ("300MiB", "/a"), ()),
        (("300MiB", "/a"), ("200MiB", "/a"), ("memory: 200 MiB, was 300 MiB",)),
        (("300MiB", None), (None, None), ("memory: what is free, was 300 MiB",)),
        ((None, None), ("1GiB", None), ("memory: 1 GiB, was what is free",)),
        (("300MiB", "/a"), ("300MiB", "/b"), ("models: another directory",)),
        (("300MiB", None), ("300MiB", "/b"), ("models: is new",)),
        (("300MiB", "/a"), ("400MiB", None), ("memory: 400 MiB, was 300 MiB", "models: none")),
    ],
)
def test_what_is_new_is_told_once(
    tmp_path: Path,
    before: tuple[str | None, str | None],
    now: tuple[str | None, str | None],
    told: tuple[str, ...],
) -> None:
    file = tmp_path / "state" / "gw-a.start.json"

    def start(setting: tuple[str | None, str | None]) -> tuple[str, ...]:
        return changes_since(file, config(setting[0]), None if setting[1] is None else Path(setting[1]))

    assert start(before) == (), "the first start changes nothing"
    assert start(now) == told
    assert start(now) == ()


def test_an_accelerator_that_is_gone_is_told(tmp_path: Path) -> None:
    file, card = tmp_path / "gw-a.start.json", Accelerator("cuda", "Some Card", lambda: 0, lambda: 0, lambda: "")
    file.write_text('{"format": 1, "memory": null, "models": null}')  # by an earlier version
    assert changes_since(file, config(None), None, card) == ()
    assert changes_since(file, config(None), None) == ("accelerator: the CPU, was Some Card",)
    assert changes_since(file, config(None), None) == ()
    assert changes_since(file, config(None), None, card) == ("accelerator: Some Card, was the CPU",)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b'{"memory": -1}', b"x" * 100_000])
def test_a_damaged_file_tells_nothing_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "gw-a.start.json"
    file.write_bytes(content)
    assert changes_since(file, config("300MiB"), None) == ()
    assert changes_since(file, config("200MiB"), None) == ("memory: 200 MiB, was 300 MiB",)


def test_a_directory_that_cannot_be_written_costs_a_line_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").write_text("a file")
    assert changes_since(tmp_path / "state" / "gw-a.start.json", config("300MiB"), None) == ()
    assert "start_not_kept" in capsys.readouterr().out


def test_no_path_is_in_the_birth(tmp_path: Path) -> None:
    file = tmp_path / "gw-a.start.json"
    changes_since(file, config(None), tmp_path / "old")
    changed = changes_since(file, config(None), tmp_path / "new")
    assert changed
    assert str(tmp_path) not in str(changed)
    fields = {"version": "1", "host": "h", "machine": "m", "cpu": "c", "python": "3", "engines": ()}
    assert About.model_validate(fields | {"changed": changed}).changed == changed
    assert len(file.read_bytes()) < last_start.MAX_FILE_BYTES
