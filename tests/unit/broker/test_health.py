"""A container's health check listens to the service beside it, at the socket that systemd would have."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.service_manager import ServiceManager, health
from s2m3.cli.main import main
from tests.patience import PATIENCE_S

SILENT_S = 0.05
SILENT = f"it said nothing for {SILENT_S} s: its main loop hangs, or it doesn't run"


def environ(folder: Path | None) -> dict[str, str]:
    place = f"{folder}/notify" if folder else f"@s2m3-test-{threading.get_native_id()}"
    return {"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "20000"}


@contextmanager
def turning(manager: ServiceManager) -> Iterator[None]:
    """A service whose main loop runs, while the block lasts."""
    ends = threading.Event()

    def turn() -> None:
        while not ends.wait(manager.wait_s(None)):
            manager.turn()

    loop = threading.Thread(target=turn)
    loop.start()
    try:
        yield
    finally:
        ends.set()
        loop.join()


@pytest.mark.parametrize("abstract", [False, True])
def test_a_service_is_healthy_when_it_serves_and_its_loop_runs(tmp_path: Path, abstract: bool) -> None:  # noqa: FBT001 - pytest's own
    variables = environ(None if abstract else tmp_path)
    manager = ServiceManager(variables)
    manager.status("connects to the broker")
    with turning(manager):
        assert health(variables, PATIENCE_S) == "it isn't ready: it connects to the broker"
        manager.ready("serves")
        assert health(variables, PATIENCE_S) is None
        assert health(variables, PATIENCE_S) is None
    assert list(tmp_path.iterdir()) == []


def test_a_service_whose_loop_hangs_is_not_healthy(tmp_path: Path) -> None:
    variables = environ(tmp_path)
    manager = ServiceManager(variables)
    manager.ready("serves")
    assert health(variables, SILENT_S) == SILENT
    manager.turn()  # to nobody: what it says before the next check doesn't count
    assert health(variables, SILENT_S) == SILENT


def test_a_service_that_ends_is_not_healthy(tmp_path: Path) -> None:
    variables = environ(tmp_path)
    manager = ServiceManager(variables)
    heard: list[str | None] = []
    check = threading.Thread(target=lambda: heard.append(health(variables, PATIENCE_S)))
    check.start()
    while check.is_alive():  # until the check listens
        manager.stopping()
        check.join(SILENT_S)
    assert heard == ["it ends"]


def test_the_socket_of_a_check_that_was_killed_is_no_obstacle_and_that_of_a_supervisor_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variables = environ(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(variables["NOTIFY_SOCKET"])
        monkeypatch.setenv("NOTIFY_SOCKET", variables["NOTIFY_SOCKET"])
        assert main(["healthy", "--wait", str(SILENT_S)]) == 2
        assert capsys.readouterr().err == (
            f"s2m3: NOTIFY_SOCKET: can't listen at {tmp_path}/notify: another program listens there; "
            "name a path that this user can write, and that no supervisor uses\n"
        )
        other.settimeout(0)
        with pytest.raises(BlockingIOError):
            other.recv(1)  # nothing was sent to it
    assert (tmp_path / "notify").exists()
    assert health(variables, SILENT_S) == SILENT


def test_the_command_says_it_by_its_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert main(["healthy"]) == 2
    fix = "set it for the service and for this command alike, to a path such as /tmp/s2m3-notify"
    assert capsys.readouterr().err == f"s2m3: NOTIFY_SOCKET: isn't set in the environment; {fix}\n"
    variables = environ(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", variables["NOTIFY_SOCKET"])
    assert main(["healthy", "--wait", str(SILENT_S)]) == 1
    assert capsys.readouterr().err == f"s2m3: the service isn't healthy: {SILENT}\n"
    manager = ServiceManager(variables)
    manager.ready("serves")
    with turning(manager):
        assert main(["healthy", "--wait", str(PATIENCE_S)]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nowhere" / "notify"))
    assert main(["healthy"]) == 2
    assert "can't listen at" in capsys.readouterr().err
