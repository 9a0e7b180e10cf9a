"""The directories that exports are written into: other people's files there stay, and the refusal comes at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from broker.protocol.errors import BadFile
from s2m3.export import write

TARGET = "conse--head"


def notes(to: Path) -> None:
    (to / TARGET).mkdir()
    (to / TARGET / "notes.txt").write_text("mine")


def link(to: Path) -> None:
    (to / "elsewhere").mkdir()
    (to / "elsewhere" / "export.json").write_text("{}")
    (to / TARGET).symlink_to("elsewhere")


def file(to: Path) -> None:
    (to / TARGET).write_text("mine")


@pytest.mark.parametrize("there", [notes, link, file])
def test_what_is_no_export_is_not_replaced_by_one(
    there: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there(tmp_path)
    monkeypatch.setattr(write, "requests", lambda _: pytest.fail("it took long"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadFile, match=rf"{tmp_path / TARGET}: is not an export, .* place; move it away, or name ano"):
        write.export("conse/head", tmp_path, "float32", lambda _: None)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_export_or_an_empty_directory_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = RuntimeError("it begins")

    def begin(_: object) -> None:
        raise begun

    monkeypatch.setattr(write, "requests", begin)
    (tmp_path / TARGET).mkdir()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="it begins"):
            write.export("conse/head", tmp_path, "float32", lambda _: None)
        (tmp_path / TARGET / "export.json").write_text("damaged")
