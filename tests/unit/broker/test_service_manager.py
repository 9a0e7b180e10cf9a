"""systemd's notify protocol, heard at a socket; and the directories that systemd, or the user, names."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from broker.directories import cache_directory, in_home, state_directory
from broker.protocol.errors import BadFile
from broker.service_manager import START_S, ServiceManager
from tests.notify import supervisor

EXTEND = f"EXTEND_TIMEOUT_USEC={START_S * 1e6:.0f}"


@pytest.mark.parametrize("abstract", [False, True])
def test_a_service_tells_what_it_does(tmp_path: Path, abstract: bool) -> None:  # noqa: FBT001 - pytest's own
    with supervisor(None if abstract else tmp_path, 3600) as systemd:
        manager = ServiceManager(systemd.environ)
        manager.status("connects")
        manager.turn()
        manager.ready("serves\n3 modules")
        manager.ready("serves again")
        manager.status("serves again")
        manager.stopping()
        for _ in range(5):
            systemd.next()
        assert systemd.heard == [
            ["STATUS=connects"],
            ["WATCHDOG=1", EXTEND],
            ["READY=1", "STATUS=serves 3 modules", "WATCHDOG=1"],
            ["STATUS=serves again"],
            ["STOPPING=1"],
        ]


def test_turns_are_told_several_times_in_the_watchdogs_time_and_not_each(tmp_path: Path) -> None:
    with supervisor(tmp_path, 0.001) as systemd:
        manager = ServiceManager(systemd.environ)
        manager.ready("serves")
        while systemd.heard.count(["WATCHDOG=1"]) < 3:
            manager.turn()
            systemd.next(timeout_s=0.001)
        assert manager.wait_s(None) == 0.001 / 8
        assert manager.wait_s(0.0) == 0.0
    with supervisor(None, 3600) as systemd:
        manager = ServiceManager(systemd.environ)
        for _ in range(1000):
            manager.turn()
        systemd.next()
        assert systemd.next(timeout_s=0) == []


def test_a_watchdog_of_another_process_is_not_fed(tmp_path: Path) -> None:
    with supervisor(tmp_path, 0.001) as systemd:
        manager = ServiceManager(systemd.environ | {"WATCHDOG_PID": "1"})
        assert manager.wait_s(None) == START_S / 8
        own = ServiceManager(systemd.environ | {"WATCHDOG_PID": str(os.getpid())})
        assert own.wait_s(None) == 0.001 / 8


def test_nothing_is_lost_while_systemd_is_busy() -> None:
    """Its socket takes only a few messages at a time."""
    address = "\0s2m3-test-busy"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as busy:
        busy.bind(address)
        manager = ServiceManager({"NOTIFY_SOCKET": address.replace("\0", "@"), "WATCHDOG_USEC": "1"})
        for number in range(10_000):
            manager.status(str(number))  # it never waits
        manager.ready("serves")
        busy.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                busy.recv(4096)
        time.sleep(0.001)
        manager.turn()
        assert busy.recv(4096).decode().split("\n") == ["READY=1", "STATUS=serves", "WATCHDOG=1"]


def test_who_begins_to_listen_hears_what_the_service_does_however_long_ago_it_said_so(tmp_path: Path) -> None:
    """As the check of a container's health does."""
    manager = ServiceManager({"NOTIFY_SOCKET": f"{tmp_path}/notify", "WATCHDOG_USEC": "1"})
    manager.status("looks for a broker")
    manager.status("connects")
    for _ in range(100):
        manager.turn()
    with supervisor(tmp_path, 1.0) as systemd:
        manager.turn()
        assert systemd.next() == ["STATUS=connects", "WATCHDOG=1", EXTEND]


def test_without_a_supervisor_or_when_it_is_gone_nothing_happens(tmp_path: Path) -> None:
    for environ in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}, {"NOTIFY_SOCKET": "x" * 300}):
        manager = ServiceManager(environ)
        manager.turn()
        manager.ready("serves")
        manager.stopping()
    assert ServiceManager({}).wait_s(None) is None
    assert ServiceManager({}).wait_s(7.0) == 7.0


def test_systemds_directories_count_before_the_users() -> None:
    assert state_directory("x", {"STATE_DIRECTORY": "/var/lib/a:/b", "XDG_STATE_HOME": "/x"}) == Path("/var/lib/a")
    assert state_directory("x", {"XDG_STATE_HOME": "/x"}) == Path("/x/s2m3")
    assert cache_directory("x", {"CACHE_DIRECTORY": "/var/cache/a", "STATE_DIRECTORY": "/b"}) == Path("/var/cache/a")
    assert cache_directory("x", {"XDG_CACHE_HOME": "/x"}) == Path("/x/s2m3")
    assert cache_directory("x", {}) == Path.home() / ".cache" / "s2m3"


def test_a_user_without_a_home_states_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(BadFile, match=r"^--state-dir: this user has no home.*name a directory with --state-dir"):
        state_directory("--state-dir", {})
    assert state_directory("--state-dir", {"XDG_STATE_HOME": "/x"}) == Path("/x/s2m3")


def test_help_needs_no_home() -> None:
    """A uid without an entry in the system's list of users has no home; only root can become one."""
    if os.geteuid():
        pytest.skip("only root can become a user without a home")
    command = [sys.executable, "-m", "s2m3", "orchestrator", "--help"]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert "--state-dir" in done.stdout
    assert "/root" not in done.stdout


def test_a_path_in_a_home_that_isnt_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_home("~/models") == Path.home() / "models"

    def no_home(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(BadFile, match=r"^~/models: begins with ~, and there is no such home.*write the whole path"):
        in_home("~/models")
