"""A service that is asked to end while it starts ends: what its start calls may swallow an exception, not a signal."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from broker.protocol.errors import BadFile
from s2m3.cli.main import main


@pytest.mark.parametrize(
    ("command", "first"),
    [
        (["agent", "--config", "gw-a.yaml"], "edge_agent.__main__.load_spec"),
        (["orchestrator"], "orchestrator.__main__.connection_of"),
        (["sources"], "s2m3.cli.sources.connection_of"),
    ],
)
def test_a_signal_ends_a_service_that_starts(
    command: list[str], first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def starting(*_: object, **__: object) -> None:
        found.append(signal.getsignal(signal.SIGTERM))
        raise BadFile(file="f", problem="p", fix="x")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(first, starting)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(command) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == [signal.SIG_DFL]
