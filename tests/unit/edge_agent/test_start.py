"""The log of an agent that starts: what its file says and this machine hasn't."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.protocol.errors import BadFile
from edge_agent.__main__ import main
from edge_agent.modules.weights.hub import DIRECTORY_VARIABLE


@pytest.mark.parametrize(("models", "told"), [("modles", True), ("models", False)])
def test_a_models_directory_that_is_not_there_is_logged(
    models: str, *, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(*_: object, **__: object) -> None:
        raise BadFile(file="f", problem="p", fix="x")

    monkeypatch.setenv(DIRECTORY_VARIABLE, "")
    monkeypatch.setattr("edge_agent.__main__.engines.chosen", end)
    monkeypatch.setattr("edge_agent.__main__.share_one_heap", lambda: None)  # this process serves other tests, too
    monkeypatch.setattr("edge_agent.__main__.end_at_once", lambda: None)
    (tmp_path / "models").mkdir()
    file = tmp_path / "gw-a.yaml"
    file.write_text(f"id: gw-a\nmodels: {tmp_path / models}\n")
    assert main(["--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert ("models_directory_is_missing" in said) == told
    assert (str(tmp_path / models) in said) == told
