"""The note of a process that ends while it computes: a crash names its payload, anything else doesn't.

Each ends in a process of its own; the note is in real memory, as on a device.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from broker.transport.connection import Connection
from edge_agent.device import pass_note
from edge_agent.device.pass_note import SHARED_MEMORY, PassNote, note_of
from tests.patience import PATIENCE_S

PAYLOAD = "0123456789abcdef" * 2
LOADED, OTHER = "ab" * 16, "cd" * 16
PROGRAM = """
import ctypes, faulthandler, os, signal, sys, threading
from pathlib import Path
from edge_agent.device.pass_note import PassNote, report_crashes, survive_full_stack
from edge_agent.watchdog import Watchdog

PAYLOAD = "0123456789abcdef" * 2
note = PassNote(Path(sys.argv[1]))
report_crashes(note)

LOADED, OTHER = "ab" * 16, "cd" * 16

def load(digest, end):
    survive_full_stack()
    with note.loading(digest):
        end()

def compute():
    survive_full_stack()
    note.begin(PAYLOAD)
    match sys.argv[2]:
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "full stack":
            deep = []
            for _ in range(10**6):
                deep = [deep]
            sys.setrecursionlimit(10**9)
            repr(deep)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "term":
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait()
        case "watchdog":
            import edge_agent.watchdog as watchdog
            watchdog.LIMIT_S = 0.2
            Watchdog(0.01, file=note.file).reset()
            while True:
                pass
        case "hang":
            note.hang()
            os._exit(0)
        case "other thread":
            thread = threading.Thread(target=ctypes.string_at, args=(0,))
            thread.start()
            thread.join()
        case "after the pass":
            note.end()
            ctypes.string_at(0)
        case "load" | "load and kill" | "load elsewhere":
            note.end()
            with note.loading(LOADED), note.loading(OTHER):
                pass
            held = threading.Thread(target=load, args=(OTHER, threading.Event().wait))
            held.daemon = True
            held.start()
            while OTHER.encode() not in note._memory[:]:
                pass
            how = {"load": lambda: ctypes.string_at(0), "load and kill": lambda: os.kill(os.getpid(), signal.SIGKILL)}
            thread = threading.Thread(target=load, args=(LOADED, how.get(sys.argv[2], lambda: None)))
            thread.start()
            thread.join()
            ctypes.string_at(0)
        case "end":
            note.remove()
            os._exit(0)

thread = threading.Thread(target=compute)
thread.start()
thread.join()
"""


@pytest.fixture
def path() -> Iterator[Path]:
    place = SHARED_MEMORY / f"s2m3-test-{os.getpid()}-{os.urandom(4).hex()}.pass"
    yield place
    place.unlink(missing_ok=True)


def end(path: Path, how: str) -> int:
    command = [sys.executable, "-c", PROGRAM, str(path), how]
    return subprocess.run(command, timeout=2 * PATIENCE_S, check=False, capture_output=True).returncode


def died_with(path: Path) -> tuple[str, ...] | None:
    note = PassNote(path)
    told = note.died_with
    note.remove()
    return told


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("segfault", -signal.SIGSEGV),
        ("abort", -signal.SIGABRT),
        ("full stack", -signal.SIGSEGV),
        ("watchdog", -signal.SIGPROF),
        ("hang", 0),
    ],
)
def test_the_next_process_knows_what_a_crash_or_a_hung_pass_computed(path: Path, how: str, code: int) -> None:
    assert end(path, how) == code
    assert died_with(path) == (PAYLOAD,)


def test_the_next_process_knows_which_load_crashed_and_not_another_one_that_was_under_way(path: Path) -> None:
    assert end(path, "load") == -signal.SIGSEGV
    assert died_with(path) == (LOADED,)


def test_all_loads_that_were_under_way_are_told_where_memory_was_short(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    end(path, "load and kill")
    counted = tmp_path / "vmstat"
    counted.write_text("nr_free_pages 1\noom_kill 1000000\n")
    monkeypatch.setattr(pass_note, "VMSTAT", counted)
    assert set(died_with(path) or ()) == {LOADED, OTHER}


def test_more_loads_at_once_than_the_note_has_room_for_are_loaded_all_the_same(path: Path) -> None:
    note = PassNote(path)
    with ExitStack() as stack:
        for number in range(40):
            stack.enter_context(note.loading(f"{number:032x}"))
    note.remove()
    with PassNote().loading(LOADED):
        pass


@pytest.mark.parametrize("how", ["kill", "term", "other thread", "after the pass", "load and kill", "load elsewhere"])
def test_whoever_is_killed_or_crashes_elsewhere_died_of_nothing_that_it_computed(path: Path, how: str) -> None:
    assert end(path, how) < 0
    assert died_with(path) == ()


def test_an_end_in_good_order_leaves_no_note_and_the_next_process_cannot_know(path: Path) -> None:
    assert end(path, "end") == 0
    assert not path.exists()
    assert died_with(path) is None


def test_a_kill_for_want_of_memory_counts(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    end(path, "kill")
    counted = tmp_path / "vmstat"
    counted.write_text("nr_free_pages 1\noom_kill 1000000\n")
    monkeypatch.setattr(pass_note, "VMSTAT", counted)
    assert died_with(path) == (PAYLOAD,)


def test_a_note_from_before_a_reboot_is_no_evidence(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    end(path, "segfault")
    another = tmp_path / "boot_id"
    another.write_text("another-boot\n")
    monkeypatch.setattr(pass_note, "BOOT_ID", another)
    assert died_with(path) is None


def test_only_its_owner_can_read_it_and_a_second_agent_takes_none_of_it(path: Path) -> None:
    end(path, "segfault")
    first = PassNote(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert first.died_with == (PAYLOAD,)
    second = PassNote(path)
    assert second.died_with is None
    second.begin(PAYLOAD)
    second.end()
    second.remove()
    assert path.exists()


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 4096, b"\0" * 10_000])
def test_a_damaged_note_stops_no_start(path: Path, content: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(content)
    assert died_with(path) is None


def test_a_link_to_elsewhere_is_not_followed(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    path.symlink_to(target)
    note = PassNote(path)
    note.begin(PAYLOAD)
    assert target.read_bytes() == b"precious"
    assert note.file is None


def test_where_nothing_is_in_memory_there_is_no_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setattr(pass_note, "SHARED_MEMORY", Path("/proc"))
    note = note_of("gw-a", Connection("127.0.0.1", 1883))
    note.begin(PAYLOAD)
    note.end()
    note.hang()
    note.remove()
    assert (note.died_with, note.file) == (None, None)
