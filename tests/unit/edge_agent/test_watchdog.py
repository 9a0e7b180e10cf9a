"""A process whose threads can't run ends by itself, with their stacks; one that is merely stopped, or idle, doesn't."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.patience import PATIENCE_S, until

LIMIT_S = 0.3
PROGRAM = """
import re, sys, threading, time
from edge_agent import watchdog

watchdog.LIMIT_S, interval_s = float(sys.argv[1]), 0.01
dog, end = watchdog.Watchdog(interval_s), threading.Event()

def reset():
    while not end.wait(interval_s):
        dog.reset()

def keep_the_lock():
    re.match("(a|a)*b", "a" * 50)  # 2^50 steps, in which no other thread runs

dog.reset()
thread = threading.Thread(target=reset)
thread.start()
print("ready", flush=True)
match sys.stdin.readline().strip():
    case "hold":
        keep_the_lock()
    case "compute":
        until_s = time.monotonic() + 5 * watchdog.LIMIT_S
        while time.monotonic() < until_s:
            pass
    case "stop":
        end.set()
        thread.join()
        dog.stop()
        until_s = time.process_time() + 3 * watchdog.LIMIT_S
        while time.process_time() < until_s:
            pass
end.set()
"""


@pytest.fixture
def process() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(LIMIT_S)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    begun = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
    assert begun.stdout.readline() == "ready\n"
    return begun  # type: ignore[no-any-return]


def test_a_thread_that_keeps_the_interpreters_lock_ends_the_process_and_its_stack_is_written(
    process: subprocess.Popen[str],
) -> None:
    _, written = process.communicate("hold\n", 2 * PATIENCE_S)
    assert process.returncode == -signal.SIGPROF
    assert "in keep_the_lock" in written
    assert "in reset" in written


@pytest.mark.parametrize("does", ["compute", "stop"])
def test_a_process_whose_threads_run_or_whose_watchdog_is_stopped_computes_as_long_as_it_likes(
    process: subprocess.Popen[str], does: str
) -> None:
    assert process.communicate(f"{does}\n", 2 * PATIENCE_S) == ("", "")
    assert process.returncode == 0


def test_a_process_that_was_stopped_for_long_goes_on(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGSTOP)
    stopped_s = time.monotonic()
    until(lambda: time.monotonic() > stopped_s + 5 * LIMIT_S)
    os.kill(process.pid, signal.SIGCONT)
    assert process.communicate("compute\n", 2 * PATIENCE_S) == ("", "")
    assert process.returncode == 0
