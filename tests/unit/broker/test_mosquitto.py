"""Mosquitto's development configuration, and finding and ending the program."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from broker.protocol.errors import BadFile, TransportError
from broker.servers import mosquitto
from broker.servers.mosquitto import CONFIGURATION, MosquittoBroker
from s2m3.testbed.replay.stage import PERSISTENCE

DEPLOYED = Path(__file__).parents[3] / "deploy" / "mosquitto" / "development.conf"


def test_the_file_to_deploy_has_the_settings_that_the_code_runs() -> None:
    lines = DEPLOYED.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == CONFIGURATION.format(port=1883).splitlines()


def test_scenarios_use_the_settings_recommended_to_sites() -> None:
    said = {line.removeprefix("#").strip() for line in DEPLOYED.read_text(encoding="utf-8").splitlines()}
    assert set(PERSISTENCE) <= said


def test_a_missing_program_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosquitto, "find_mosquitto", lambda: None)
    with pytest.raises(BadFile, match="apt-get install mosquitto"):
        MosquittoBroker().start()


def test_a_taken_port_is_an_error() -> None:
    with MosquittoBroker() as running, pytest.raises(TransportError, match=f"port {running.port} is taken"):
        MosquittoBroker(running.port).start()


def test_a_failed_start_is_an_error_with_the_output_of_mosquitto() -> None:
    with pytest.raises(TransportError, match="Unknown configuration variable"):
        MosquittoBroker(settings=["nonsense true"]).start()


@pytest.mark.parametrize("when", ["in Popen", "while it starts"])
def test_an_interrupted_start_leaves_no_process(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            begun.append(self)
            if when == "in Popen":
                signal.raise_signal(signal.SIGINT)

    def listens(_: int) -> bool:
        if begun:
            signal.raise_signal(signal.SIGINT)
        return False

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    monkeypatch.setattr(mosquitto, "listens", listens)
    with pytest.raises(KeyboardInterrupt), MosquittoBroker():
        pass
    assert [process.returncode is not None for process in begun] == [True]


def test_it_starts_again_on_the_same_port_after_a_kill() -> None:
    with MosquittoBroker() as broker:
        url, pid = broker.url, broker.pid
        broker.kill()
        with pytest.raises(TransportError, match="isn't running"):
            _ = broker.pid
        broker.start()
        assert broker.url == url
        assert broker.pid != pid
